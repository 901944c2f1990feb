// A frame with its atoms and its spread, in OpenSeadragon; for every page that shows one.
//
//   const viewer = manybeamViewer(element, { width, height, tile, frame, spread, pixelSizePm });
//   viewer.setAtoms(float32Array);   // five numbers an atom: y, x, probability, spread (px), class
//
// `frame` and `spread` return the address of a tile: (level, x, y) => address; `spread` may be null.
(function () {
  "use strict";
  const STRIDE = 5;
  const { kinds: KINDS, paint } = manybeamAtoms;

  function source(options, tileUrl) {
    const most = Math.max(options.width, options.height), maxLevel = Math.ceil(Math.log2(most));
    const minLevel = Math.max(0, maxLevel - Math.max(0, Math.ceil(Math.log2(most / options.tile))));
    return { width: options.width, height: options.height, tileSize: options.tile, tileOverlap: 0, minLevel, maxLevel, getTileUrl: tileUrl };
  }

  function button(text, name, act) {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", textContent: text, className: "mb-zoom", title: name });
    made.setAttribute("aria-label", name);
    made.addEventListener("click", act);
    return made;
  }

  window.manybeamViewer = function (element, options) {
    const unit = options.pixelSizePm || 1;
    const hear = { gone() {}, drawn() {}, point() {}, ...options.on };
    const osd = OpenSeadragon({
      element, drawer: "canvas", showNavigationControl: false, showNavigator: Boolean(options.navigator),
      navigatorPosition: "TOP_RIGHT", navigatorSizeRatio: 0.2, imageSmoothingEnabled: false,
      animationTime: 0.25, maxZoomPixelRatio: 40, visibilityRatio: 0.6, minZoomImageRatio: 0.8,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, tileSources: [source(options, options.frame)],
    });
    const box = osd.canvas;
    box.setAttribute("role", "application");
    box.setAttribute("aria-label", options.label || "Frame with atoms; arrows move it, + and - zoom");
    const canvas = document.createElement("canvas");
    canvas.className = "mb-atoms";
    canvas.setAttribute("aria-hidden", "true");
    box.appendChild(canvas);
    const bar = document.createElement("div");
    bar.className = "mb-bar";
    const zoom = document.createElement("div");
    zoom.className = "mb-zooms";
    const by = (factor) => () => { osd.viewport.zoomBy(factor); osd.viewport.applyConstraints(); };
    zoom.append(button("+", "Zoom in", by(1.5)), button("−", "Zoom out", by(1 / 1.5)), button("⤢", "Whole frame", () => osd.viewport.goHome()));
    element.append(zoom, bar);

    let atoms = new Float32Array(0), kept = [], filter = { least: 0, most: Infinity }, isOn = true, spread = null, opacity = 0;

    // Sort the atoms that are shown into their classes, once, not at each frame that is drawn.
    function sort() {
      kept = KINDS.map(() => []);
      for (let i = 0; i < atoms.length; i += STRIDE) {
        const s = atoms[i + 3] * unit;
        if (atoms[i + 2] < filter.least || s > filter.most) continue;
        kept[manybeamAtoms.kindOf(atoms[i + 3], options.pixelSizePm)].push(atoms[i + 1], atoms[i]);
      }
      draw();
    }

    function draw() {
      if (!osd.viewport || !osd.world.getItemCount()) return;
      const ratio = window.devicePixelRatio || 1, { clientWidth, clientHeight } = box;
      if (canvas.width !== Math.round(clientWidth * ratio) || canvas.height !== Math.round(clientHeight * ratio)) {
        canvas.width = Math.round(clientWidth * ratio);
        canvas.height = Math.round(clientHeight * ratio);
      }
      const from = osd.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
      const to = osd.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
      const scale = (to.x - from.x) / options.width;
      const c = canvas.getContext("2d");
      c.setTransform(ratio, 0, 0, ratio, 0, 0);
      c.clearRect(0, 0, clientWidth, clientHeight);
      if (isOn && atoms.length) {
        const step = Math.sqrt((options.width * options.height * STRIDE) / atoms.length);
        const radius = Math.min(Math.max(0.33 * step * scale, 1.5), 13), width = radius > 4 ? 1.8 : 1.1;
        kept.forEach((places, kind) => {
          const points = [];
          for (let i = 0; i < places.length; i += 2) {
            const x = from.x + (places[i] + 0.5) * scale, y = from.y + (places[i + 1] + 0.5) * scale;
            if (x > -radius && y > -radius && x < clientWidth + radius && y < clientHeight + radius) points.push(x, y);
          }
          if (points.length) paint(c, points, KINDS[kind], radius, width);
        });
      }
      measure(scale);
      hear.drawn();
    }

    function measure(scale) {
      bar.hidden = !options.pixelSizePm;
      if (bar.hidden) return;
      const pmPerPx = options.pixelSizePm / scale, most = 0.25 * box.clientWidth * pmPerPx;
      const power = 10 ** Math.floor(Math.log10(most));
      const length = [5, 2, 1].map((one) => one * power).find((one) => one <= most) || power;
      bar.style.width = `${length / pmPerPx}px`;
      bar.textContent = length >= 1000 ? `${length / 1000} nm` : `${length} pm`;
    }

    osd.addHandler("update-viewport", draw);
    osd.addHandler("resize", () => requestAnimationFrame(draw));
    osd.addHandler("tile-load-failed", () => hear.gone());
    osd.addHandler("canvas-key", (event) => {
      if (/^[a-z[\]?]$/i.test(event.originalEvent.key)) event.preventDefaultAction = true;
    });

    function pointed(event) {
      const at = box.getBoundingClientRect();
      const point = osd.viewport.pointFromPixel(new OpenSeadragon.Point(event.clientX - at.left, event.clientY - at.top), true);
      const x = point.x * options.width - 0.5, y = point.y * options.width - 0.5;
      const isInside = x >= -0.5 && y >= -0.5 && x < options.width && y < options.height;
      hear.point(isInside ? { y, x, atom: isOn ? nearest(y, x) : null } : null);
    }

    function nearest(y, x) {
      let best = null, least = 0.15 * options.width * options.height * STRIDE / Math.max(atoms.length, 1);
      for (let i = 0; i < atoms.length; i += STRIDE) {
        const far = (atoms[i] - y) ** 2 + (atoms[i + 1] - x) ** 2;
        if (far < least) { least = far; best = { y: atoms[i], x: atoms[i + 1], probability: atoms[i + 2], spreadPx: atoms[i + 3] }; }
      }
      return best;
    }
    box.addEventListener("pointermove", pointed);

    function setSpread(value) {
      opacity = value;
      if (!options.spread) return;
      if (spread) { spread.setOpacity(opacity); return; }
      if (!opacity || spread === false) return;
      spread = false;  // on its way
      osd.addTiledImage({ tileSource: source(options, options.spread), x: 0, y: 0, width: 1, opacity, success(event) { spread = event.item; spread.setOpacity(opacity); } });
    }

    const self = {
      osd,
      setAtoms(found) { atoms = found; sort(); },
      setFilter(wanted) { filter = { ...filter, ...wanted }; sort(); },
      setAtomsOn(value) { isOn = value; draw(); },
      setSpread,
      setFrame(tileUrl) {
        options.frame = tileUrl;
        osd.addTiledImage({ tileSource: source(options, tileUrl), index: 0, replace: true, x: 0, y: 0, width: 1 });
      },
      get counts() { return kept.map((places) => places.length / 2); },
      get largestSpread() {
        let most = 0;
        for (let i = 3; i < atoms.length; i += STRIDE) if (atoms[i] * unit > most) most = atoms[i] * unit;
        return most;
      },
      // Show the part of the frame that another viewer shows, and the other way round.
      follow(other) {
        let isLed = false;
        const pair = (a, b) => a.osd.addHandler("update-viewport", () => {
          if (isLed || !b.osd.viewport || !b.osd.world.getItemCount()) return;
          const wanted = a.osd.viewport.getBounds(true), now = b.osd.viewport.getBounds(true);
          if (Math.abs(wanted.x - now.x) + Math.abs(wanted.y - now.y) + Math.abs(wanted.width - now.width) < 1e-6) return;
          isLed = true;
          b.osd.viewport.fitBounds(wanted, true);
          isLed = false;
        });
        pair(other, self);
        self.osd.addOnceHandler("open", () => { self.osd.viewport.fitBounds(other.osd.viewport.getBounds(true), true); pair(self, other); });
      },
      close() { osd.destroy(); element.replaceChildren(); },
    };
    return self;
  };
  window.manybeamViewer.STRIDE = STRIDE;
})();
