"""Positions of atoms: found in one map, and clustered over the members of an ensemble.

Axis letters: n atom, p pair of atoms, m member, w pixel of a window, 2 the pair (y, x).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from manybeam.errors import InvalidInput, MemberCountError

Array = NDArray[np.floating]
Index = NDArray[np.int64]
Found = NDArray[np.float32]
Sampler = Callable[[int, Array], Array]

SMOOTHING = 0.25  # width of the smoothing before the search for maxima, per minimum distance
WINDOW = 0.75  # radius of the window of a centroid, per minimum distance
BATCH = 512  # atoms whose windows are in memory at once; so they fit into the cache
ROUNDING = np.float32(4)  # float32 next to it have steps of 5e-7
LEVEL = 7e-7  # values beside each other that differ by less count as equal
BLOCK = 64  # rows, or columns, that are blurred by one matrix
LARGEST_SHARE = 0.75  # of a step in the one before, that is believed
LEAST_SHARE = 1e-9  # of the whole weight; with less, there is no spread
FAINT = 0.05  # least height of a candidate in the smoothed map, per threshold


def find_atoms(prob_yx: Array, threshold: float = 0.5, min_distance_px: float = 3.0) -> Found:
    """Return the atoms of one probability map: y, x, class 0, probability.

    See `find_atoms_of_members`.

    Example:
        >>> prob = np.zeros((9, 9), np.float32)
        >>> prob[4, 5:7] = 0.8
        >>> find_atoms(prob).round(1).tolist()
        [[4.0, 5.5, 0.0, 0.800000011920929]]
    """
    (atoms,) = find_atoms_of_members(np.asarray(prob_yx)[None], threshold, min_distance_px)
    return atoms


def find_atoms_of_members(
    prob_myx: Array, threshold: float = 0.5, min_distance_px: float = 3.0
) -> list[Found]:
    """Return the atoms of each of several maps: y, x, class 0, probability.

    A map is smoothed a little before the search for maxima, because maps of networks are flat on
    top. Of two maxima nearer than the minimum distance the stronger one stays. Each position is the
    centroid of the map in a window, which is moved until it is centred on its centroid.

    All maps are handled together, because calls of numpy for one map of usual size cost as much as
    the work in them.

    Args:
        prob_myx: probability of an atom in each pixel, 0 to 1.
        threshold: least probability of an atom.
        min_distance_px: least distance of two atoms, in pixels; > 0.

    Returns:
        For each map float32 (atoms, 4), the most probable first; never NaN.
    """
    prob_myx = np.asarray(prob_myx, np.float32)
    smooth_myx = smoothed(prob_myx, SMOOTHING * min_distance_px)
    member_n, position_n2 = _maxima(smooth_myx, FAINT * threshold, LEVEL)
    probability = _highest_around(prob_myx, member_n, position_n2)
    likely = probability >= threshold
    member_n, position_n2, probability = member_n[likely], position_n2[likely], probability[likely]
    # Maps one below the other, so far apart that atoms of two maps are no neighbours.
    apart_n2 = position_n2.copy()
    apart_n2[:, 0] += member_n * (prob_myx.shape[1] + np.ceil(min_distance_px) + 1)
    kept = strongest(apart_n2, _sampled(smooth_myx, member_n, position_n2), min_distance_px)
    member_n, probability = member_n[kept], probability[kept]
    centre_n2 = _centroids(prob_myx, member_n, position_n2[kept], WINDOW * min_distance_px)
    atoms = np.column_stack([centre_n2, np.zeros(len(kept)), probability]).astype(np.float32)
    order = np.lexsort((centre_n2[:, 1], centre_n2[:, 0], -probability, member_n))
    ends = np.cumsum(np.bincount(member_n, minlength=len(prob_myx)))[:-1]
    return np.split(atoms[order], ends)


def cluster_atoms(
    member_atoms: Sequence[Array],
    radius_px: float,
    member_count: int | None = None,
    sample_member: Sampler | None = None,
    weights: Sequence[float] | None = None,
) -> Found:
    """Return the atoms of an ensemble, clustered from the atoms of each member.

    Clusters grow around the most probable atoms. A cluster takes at most one atom of each member,
    the nearest first; atoms that are left start further clusters. If a member missed an atom, its
    probability at that position counts. So ten members with probability .5 outweigh one member with
    probability 1.

    Args:
        member_atoms: (atoms, 4) y, x, class, probability of each member.
        radius_px: largest distance of an atom from the first atom of its cluster, in pixels.
        member_count: number of members that answered; those past the list found nothing. The
            length of the list if left out.
        sample_member: returns the probability of member m at (n, 2) positions; 0 if left out.
        weights: weight of each member, > 0, in position, class, probability and spread; only their
            ratios matter. Equal if left out.

    Returns:
        float32 (atoms, 7), the most probable first: y, x, class, probability, spread_y_px,
        spread_x_px, votes. The spread is the standard deviation (n - 1 divisor) over the members
        that found the atom; NaN if only one did. Votes are the share of members that found it,
        above 0 to 1.

    Raises:
        MemberCountError: no member, or more lists than members.
        InvalidInput: there is not one weight above 0 for each member.

    Example:
        >>> one, two = np.array([[5.0, 5.0, 0, 0.9]]), np.array([[5.0, 7.0, 0, 0.7]])
        >>> cluster_atoms([one, two], radius_px=3.0).round(2).tolist()[0][:4]
        [5.0, 6.0, 0.0, 0.800000011920929]
    """
    count = len(member_atoms) if member_count is None else member_count
    if count < max(1, len(member_atoms)):
        raise MemberCountError(
            f"{len(member_atoms)} lists of atoms from {count} members",
            "an answer needs at least one member and at most one list from each",
        )
    rows = [np.asarray(atoms, float).reshape(-1, 4) for atoms in member_atoms]
    pooled = np.concatenate([*rows, np.zeros((0, 4))])
    member_n = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    weight_m = _member_weights(weights, count)
    cluster_n = _cluster(pooled, member_n, radius_px, count)
    return _describe(pooled, member_n, cluster_n, weight_m, sample_member)


def strongest(position_n2: Array, strength_n: Array, distance_px: float) -> Index:
    """Return indices of the atoms that stay when each removes weaker ones nearer than this.

    The result is the same as going through the atoms from the strongest down, but many are handled
    at a time. Among equals the smaller (y, x) comes first, so the order of rows has no effect.
    """
    order = _order(strength_n, position_n2)
    if len(order) < 2:
        return order
    tree = cKDTree(position_n2[order])
    pairs_p2 = tree.query_pairs(np.nextafter(distance_px, 0), output_type="ndarray")
    first, second = np.sort(pairs_p2, axis=1).T
    kept, open_n = np.zeros(len(order), bool), np.ones(len(order), bool)
    while len(first):
        has_stronger = np.zeros(len(order), bool)
        has_stronger[second] = True
        kept |= open_n & ~has_stronger
        open_n &= has_stronger
        open_n[second[kept[first]]] = False
        still = open_n[first] & open_n[second]
        first, second = first[still], second[still]
    return order[kept | open_n]


def local_maxima(map_yx: Array, floor: float) -> Array:
    """Return (n, 2) centres of the maxima above the floor; a flat top is one maximum."""
    return _maxima(np.asarray(map_yx)[None], floor)[1]


def smoothed(map_myx: Array, width_px: float) -> Array:
    """Return maps blurred by a Gaussian; beyond an edge they go on as at the edge.

    A matrix product with a band of blocks is four times as fast as a loop over taps.
    """
    reach = int(4 * width_px + 0.5)
    tap = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width_px) ** 2)
    band = np.zeros((BLOCK, BLOCK + 2 * reach), np.float32)
    for row in range(BLOCK):
        band[row, row : row + len(tap)] = tap / tap.sum()
    count, *sides = map_myx.shape
    blocks = [-(-side // BLOCK) for side in sides]
    edges = [(reach, reach + n * BLOCK - side) for n, side in zip(blocks, sides, strict=True)]
    padded_myx = np.pad(np.asarray(map_myx, np.float32), [(0, 0), *edges], mode="edge")
    wide = (count, blocks[0], BLOCK + 2 * reach, padded_myx.shape[2])
    blurred_mbyx = np.matmul(band, _blocks(padded_myx, wide, axis=1))
    once_myx = blurred_mbyx.reshape(count, blocks[0] * BLOCK, -1)
    twice_myx = np.empty((count, once_myx.shape[1], blocks[1] * BLOCK), np.float32)
    tall = (count, blocks[1], once_myx.shape[1])
    np.matmul(
        _blocks(once_myx, (*tall, BLOCK + 2 * reach), axis=2),
        band.T,
        out=_blocks(twice_myx, (*tall, BLOCK), axis=2),
    )
    # Rounded, so that of equals the last bit does not decide: columns are summed in several orders,
    # and each processor has its own.
    twice_myx += ROUNDING
    twice_myx -= ROUNDING
    return twice_myx[:, : sides[0], : sides[1]]


def sample(map_yx: Array, position_n2: Array) -> Array:
    """Return the map at (n, 2) positions, bilinear; outside, the nearest pixel of the edge."""
    if not len(position_n2):
        return np.zeros(0)
    last = np.array(map_yx.shape) - 1
    position_n2 = np.clip(position_n2, 0, last)
    low = np.floor(position_n2).astype(np.int64)
    high = np.minimum(low + 1, last)
    fy, fx = (position_n2 - low).T
    upper = map_yx[low[:, 0], low[:, 1]] * (1 - fx) + map_yx[low[:, 0], high[:, 1]] * fx
    lower = map_yx[high[:, 0], low[:, 1]] * (1 - fx) + map_yx[high[:, 0], high[:, 1]] * fx
    return np.asarray(upper * (1 - fy) + lower * fy, float)


def centroids(map_yx: Array, position_n2: Array, radius_px: float) -> Array:
    """Return positions moved to the centroid of the map in a round window.

    The window follows the centroid by whole and part pixels (its edge is one pixel soft), so that
    the result is not biased towards the pixel that it started from.
    """
    member_n = np.zeros(len(position_n2), np.int64)
    return _centroids(np.asarray(map_yx)[None], member_n, position_n2, radius_px)


def first_come(atom_p: Index, seat_p: Index) -> Index:
    """Return the pairs, unordered, in which each atom and each seat is used at most once.

    Earlier pairs come first. All pairs whose atom and seat no earlier pair needs are taken at once.
    """
    taken: list[Index] = []
    open_p = np.arange(len(atom_p))
    while len(open_p):
        first_of_atom = np.zeros(len(open_p), bool)
        first_of_atom[np.unique(atom_p[open_p], return_index=True)[1]] = True
        first_of_seat = np.zeros(len(open_p), bool)
        first_of_seat[np.unique(seat_p[open_p], return_index=True)[1]] = True
        new = open_p[first_of_atom & first_of_seat]
        taken.append(new)
        is_free = ~np.isin(atom_p[open_p], atom_p[new]) & ~np.isin(seat_p[open_p], seat_p[new])
        open_p = open_p[is_free]
    return np.concatenate([np.zeros(0, np.int64), *taken])


def _order(strength_n: Array, position_n2: Array) -> Index:
    """Return the order: strongest first, ties by y and x; the order of rows has no effect."""
    return np.lexsort((position_n2[:, 1], position_n2[:, 0], -np.asarray(strength_n)))


def _maxima(map_myx: Array, floor: float, level: float = 0.0) -> tuple[Index, Array]:
    """Return the map and the centre of each maximum above the floor.

    A pixel that is lower than the highest beside it by less than `level` belongs to a flat top.
    """
    highest_myx = _highest_of_nine(map_myx)
    if level:
        highest_myx -= level
    top_myx = (map_myx >= highest_myx) & (map_myx > floor)
    member_n, y_n, x_n = np.unravel_index(np.flatnonzero(top_myx), top_myx.shape)
    position_n2 = np.column_stack([y_n, x_n]).astype(float)
    flat_n = _flat_tops(top_myx, member_n, y_n, x_n)
    if flat_n is None:
        return member_n, position_n2
    size = np.bincount(flat_n)
    centre_n2 = np.column_stack([np.bincount(flat_n, one) / size for one in position_n2.T])
    first_n = np.unique(flat_n, return_index=True)[1]
    return member_n[first_n], centre_n2


def _highest_of_nine(map_myx: Array) -> Array:
    """Return for each pixel the highest value of it and its eight neighbours."""
    row = map_myx.copy()
    np.maximum(row[:, 1:], map_myx[:, :-1], out=row[:, 1:])
    np.maximum(row[:, :-1], map_myx[:, 1:], out=row[:, :-1])
    both = row.copy()
    np.maximum(both[..., 1:], row[..., :-1], out=both[..., 1:])
    np.maximum(both[..., :-1], row[..., 1:], out=both[..., :-1])
    return both


def _flat_tops(top_myx: NDArray[np.bool_], member_n: Index, y_n: Index, x_n: Index) -> Index | None:
    """Return the number of the flat top of each top pixel; None if all stand alone."""
    number_myx = np.pad(np.zeros(top_myx.shape, np.int32), ((0, 0), (0, 1), (1, 1)))
    number_myx[member_n, y_n, x_n + 1] = np.arange(1, len(member_n) + 1)
    pairs = []
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other_n = number_myx[member_n, y_n + down, x_n + 1 + right]
        first_n = np.flatnonzero(other_n)
        pairs.append(np.stack([first_n, other_n[first_n] - 1]))
    first_p, second_p = np.concatenate(pairs, axis=1)
    if not len(first_p):
        return None
    count = len(member_n)
    graph = csr_array((np.ones(len(first_p), bool), (first_p, second_p)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _highest_around(map_myx: Array, member_n: Index, position_n2: Array) -> Array:
    """Return the highest of the nine pixels around each position."""
    last = np.array(map_myx.shape[1:]) - 1
    pixel_n2 = np.rint(position_n2).astype(np.int64)
    around = np.arange(-1, 2)
    y_nw, x_nw = (np.clip(pixel_n2[:, axis, None] + around, 0, last[axis]) for axis in (0, 1))
    near_nww = map_myx[member_n[:, None, None], y_nw[:, :, None], x_nw[:, None]]
    return np.asarray(near_nww.max(axis=(1, 2)))


def _sampled(map_myx: Array, member_n: Index, position_n2: Array) -> Array:
    """Return each map at its own positions, as `sample` does."""
    last = np.array(map_myx.shape[1:]) - 1
    position_n2 = np.clip(position_n2, 0, last)
    low = np.floor(position_n2).astype(np.int64)
    high = np.minimum(low + 1, last)
    fy, fx = (position_n2 - low).T
    (y, x), (below, right) = low.T, high.T
    upper = map_myx[member_n, y, x] * (1 - fx) + map_myx[member_n, y, right] * fx
    lower = map_myx[member_n, below, x] * (1 - fx) + map_myx[member_n, below, right] * fx
    return np.asarray(upper * (1 - fy) + lower * fy, float)


def _blocks(map_myx: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Return a view (m, block, y, x) whose blocks begin every `BLOCK` pixels along an axis."""
    stride_m, stride_y, stride_x = map_myx.strides
    strides = (stride_m, BLOCK * map_myx.strides[axis], stride_y, stride_x)
    return as_strided(map_myx, shape, strides)


def _centroids(map_myx: Array, member_n: Index, position_n2: Array, radius_px: float) -> Array:
    """Return positions of several maps moved as `centroids` does; `member_n` is the map of each."""
    window = _Window.of(radius_px, map_myx.shape)
    padded_myx = np.pad(map_myx, ((0, 0), (window.reach,) * 2, (window.reach,) * 2))
    value_p, start_n = padded_myx.reshape(-1), member_n * padded_myx[0].size
    last = np.array(map_myx.shape[1:]) - 1

    def moved(centre_n2: Array, batch: slice) -> Array:
        pixel_n2 = np.clip(np.rint(centre_n2), 0, last)
        return window.moved(value_p, start_n[batch], pixel_n2, centre_n2)

    centre_n2 = np.array(position_n2, float)
    for start in range(0, len(centre_n2), BATCH):
        batch = slice(start, start + BATCH)
        first_n2 = centre_n2[batch]
        second_n2 = moved(first_n2, batch)
        third_n2 = moved(second_n2, batch)
        centre_n2[batch] = moved(_limit(first_n2, second_n2, third_n2), batch)
    return np.asarray(np.clip(centre_n2, 0, last))


def _limit(first_n2: Array, second_n2: Array, third_n2: Array) -> Array:
    """Return where positions would come to rest if each step is the same share of the one before.

    Source:
        Aitken's method for series; three rounds with it come as near as five without.
    """
    step_n2 = third_n2 - second_n2
    before_n = np.maximum(np.hypot(*(second_n2 - first_n2).T), 1e-9)
    share_n = np.clip(np.hypot(*step_n2.T) / before_n, 0, LARGEST_SHARE)
    return np.asarray(third_n2 + step_n2 * (share_n / (1 - share_n))[:, None])


@dataclass(frozen=True, eq=False)
class _Window:
    """A round window with an edge one pixel soft.

    Attributes:
        radius_px: radius of the middle of its edge.
        reach: pixels that it reaches from its middle pixel.
        step_w2: y and x of its pixels, from its middle pixel.
        offset_w: the same in a flat array of padded maps, from the first pixel of the window.
        width: columns of a padded map.
    """

    radius_px: float
    reach: int
    step_w2: NDArray[np.float32]
    offset_w: Index
    width: int

    @classmethod
    def of(cls, radius_px: float, shape: tuple[int, ...]) -> "_Window":
        """Return the window for maps (m, y, x) that are padded by its reach."""
        reach = int(np.ceil(radius_px + 0.5))
        step_w2 = np.indices((2 * reach + 1,) * 2).reshape(2, -1).T - reach
        # The middle of the window lies within a pixel of its middle pixel.
        step_w2 = step_w2[np.hypot(*step_w2.T) < radius_px + 0.5 + np.sqrt(0.5)]
        width = shape[2] + 2 * reach
        offset_w = (step_w2[:, 0] + reach) * width + step_w2[:, 1] + reach
        return cls(radius_px, reach, step_w2.astype(np.float32), offset_w, width)

    def moved(self, value_p: Array, start_n: Index, pixel_n2: Array, centre_n2: Array) -> Array:
        """Return the centroids in windows at these centres, as float64.

        Offsets from the middle pixel are small, so that float32 is exact enough for them.
        """
        off_n2 = (centre_n2 - pixel_n2).astype(np.float32)
        weight_nw = off_n2 @ (-2 * self.step_w2.T)
        weight_nw += np.square(off_n2).sum(axis=1)[:, None]
        weight_nw += np.square(self.step_w2).sum(axis=1)
        np.maximum(weight_nw, 0, out=weight_nw)  # of rounding
        np.sqrt(weight_nw, out=weight_nw)
        np.subtract(np.float32(self.radius_px + 0.5), weight_nw, out=weight_nw)
        np.maximum(weight_nw, 0, out=weight_nw)
        np.minimum(weight_nw, 1, out=weight_nw)
        first_n = start_n + pixel_n2.astype(np.int64) @ (self.width, 1)
        weight_nw *= value_p[first_n[:, None] + self.offset_w]
        total = np.maximum(weight_nw.sum(axis=1), 1e-12)
        return np.asarray(pixel_n2 + (weight_nw @ self.step_w2) / total[:, None])


def _cluster(pooled: Array, member_n: Index, radius_px: float, member_count: int) -> Index:
    """Return the cluster of each pooled atom."""
    cluster_n = np.full(len(pooled), -1)
    cluster_count = 0
    while (left := np.flatnonzero(cluster_n < 0)).size:
        founders = left[strongest(pooled[left, :2], pooled[left, 3], radius_px)]
        near = cKDTree(pooled[left, :2]).sparse_distance_matrix(
            cKDTree(pooled[founders, :2]), radius_px, output_type="ndarray"
        )
        atom, seat = left[near["i"]], near["j"] * member_count + member_n[left[near["i"]]]
        order = np.lexsort((*pooled[atom].T[[1, 0]], -pooled[atom, 3], near["v"]))
        taken = order[first_come(atom[order], seat[order])]
        cluster_n[atom[taken]] = cluster_count + near["j"][taken]
        cluster_count += len(founders)
    return cluster_n


def _member_weights(weights: Sequence[float] | None, count: int) -> Array:
    """Return the weight of each member, the largest 1; equal weights are the same as none."""
    weight_m = np.ones(count) if weights is None else np.asarray(weights, float)
    if weight_m.shape != (count,) or not ((weight_m > 0) & np.isfinite(weight_m)).all():
        raise InvalidInput(
            f"weights {weight_m.tolist()} of {count} members", "one for each, finite and above 0"
        )
    return np.asarray(weight_m / weight_m.max())


def _describe(
    pooled: Array,
    member_n: Index,
    cluster_n: Index,
    weight_m: Array,
    sample_member: Sampler | None,
) -> Found:
    """Return one row of seven numbers for each cluster."""
    count = int(cluster_n.max(initial=-1)) + 1
    weight_n = weight_m[member_n]
    mean_n2, spread_n2 = _places_and_spread(pooled, weight_n, cluster_n, count)
    belief = np.bincount(cluster_n, weight_n * pooled[:, 3], count).astype(float)
    if sample_member is not None:
        belief += _missed(mean_n2, member_n, cluster_n, weight_m, sample_member)
    probability = np.clip(belief / weight_m.sum(), 0, 1)
    kind = _commonest_class(pooled, weight_n, cluster_n, count)
    votes = np.bincount(cluster_n, minlength=count) / len(weight_m)
    atoms = np.column_stack([mean_n2, kind, probability, spread_n2, votes])
    return atoms[_order(probability, mean_n2)].astype(np.float32)


def _places_and_spread(
    pooled: Array, weight_n: Array, cluster_n: Index, count: int
) -> tuple[Array, Array]:
    """Return the mean position of each cluster and the standard deviation around it."""
    mean_n2, spread_n2 = np.zeros((count, 2)), np.full((count, 2), np.nan)
    total = np.bincount(cluster_n, weight_n, count)
    # For equal weights this is n - 1; for others the variance stays unbiased.
    freedom = total - np.bincount(cluster_n, weight_n**2, count) / total
    several = freedom > LEAST_SHARE * total
    for axis in (0, 1):
        mean_n2[:, axis] = np.bincount(cluster_n, weight_n * pooled[:, axis], count) / total
        square = weight_n * (pooled[:, axis] - mean_n2[cluster_n, axis]) ** 2
        rest = np.bincount(cluster_n, square, count)
        spread_n2[several, axis] = np.sqrt(rest[several] / freedom[several])
    return mean_n2, spread_n2


def _missed(
    mean_n2: Array, member_n: Index, cluster_n: Index, weight_m: Array, sample_member: Sampler
) -> Array:
    """Return for each cluster the sum of the probabilities of members that missed it."""
    belief = np.zeros(len(mean_n2))
    for member, weight in enumerate(weight_m):
        missed = np.ones(len(mean_n2), bool)
        missed[cluster_n[member_n == member]] = False
        belief[missed] += weight * sample_member(member, mean_n2[missed])
    return belief


def _commonest_class(pooled: Array, weight_n: Array, cluster_n: Index, count: int) -> Array:
    """Return the class with the greatest sum of probability in each cluster."""
    kinds, kind_n = np.unique(pooled[:, 2], return_inverse=True)
    if not count:
        return np.zeros(0)
    cell_n, belief_n = cluster_n * len(kinds) + kind_n, weight_n * pooled[:, 3]
    flat = np.bincount(cell_n, belief_n, count * len(kinds))
    return np.asarray(kinds[flat.reshape(count, len(kinds)).argmax(axis=1)])
