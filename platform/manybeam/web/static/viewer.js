// A frame with its atoms and its spread, in OpenSeadragon; for every page that shows one.
//
//   const viewer = manybeamViewer(element, { width, height, tile, frame, spread, pixelSizePm });
//   viewer.setAtoms(float32Array);   // five numbers an atom: y, x, probability, spread (px), class
//
// `frame` and `spread` return the address of a tile: (level, x, y) => address; `spread` may be null.
(function () {
  "use strict";
  const STRIDE = 5;
  // Position spread between members: upper end of each class, in pm or else in pixels. Each class
  // has its colour (Okabe and Ito) and its shape, so that nobody depends on the colour.
  const EDGES = { pm: [5, 10, 20], px: [0.25, 0.5, 1] };
  const KINDS = [
    { colour: "#56b4e9", shape: "circle" },
    { colour: "#f0e442", shape: "square" },
    { colour: "#ff9f1c", shape: "triangle" },
    { colour: "#ff5a36", shape: "diamond" },
    { colour: "#ffffff", shape: "plus" },
  ];
  const SHAPES = {
    circle(c, x, y, r) { c.moveTo(x + r, y); c.arc(x, y, r, 0, 2 * Math.PI); },
    square(c, x, y, r) { c.rect(x - 0.85 * r, y - 0.85 * r, 1.7 * r, 1.7 * r); },
    triangle(c, x, y, r) { c.moveTo(x, y - 1.15 * r); c.lineTo(x + r, y + 0.75 * r); c.lineTo(x - r, y + 0.75 * r); c.closePath(); },
    diamond(c, x, y, r) { c.moveTo(x, y - 1.2 * r); c.lineTo(x + 1.2 * r, y); c.lineTo(x, y + 1.2 * r); c.lineTo(x - 1.2 * r, y); c.closePath(); },
    plus(c, x, y, r) { c.moveTo(x - r, y); c.lineTo(x + r, y); c.moveTo(x, y - r); c.lineTo(x, y + r); },
  };

  function paint(c, points, kind, radius, width) {
    c.beginPath();
    for (let i = 0; i < points.length; i += 2) SHAPES[kind.shape](c, points[i], points[i + 1], radius);
    c.strokeStyle = "rgb(0 0 0 / 65%)";
    c.lineWidth = width + 2;
    c.stroke();
    c.strokeStyle = kind.colour;
    c.lineWidth = width;
    c.stroke();
  }

  // The names of the classes and a drawing of each, for a legend.
  function classes(pixelSizePm) {
    const unit = pixelSizePm ? "pm" : "px", edges = EDGES[unit];
    const names = edges.map((edge, i) => (i ? `${edges[i - 1]} to ${edge} ${unit}` : `below ${edge} ${unit}`));
    return [...names, `above ${edges[edges.length - 1]} ${unit}`, "unknown"];
  }

  function sign(place) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 40;
    canvas.className = "mb-sign";
    canvas.setAttribute("aria-hidden", "true");
    paint(canvas.getContext("2d"), [20, 20], KINDS[place], 10, 3.5);
    return canvas;
  }

  // OpenSeadragon writes a style sheet of its own unless it finds one; the policy of the pages
  // forbids that, also for an empty one. So it finds an element of that name that is no style sheet.
  const own = document.createElementNS("urn:manybeam", "style");
  own.setAttribute("data-openseadragon-mobile-css", "");
  document.head.append(own);

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
    const unit = options.pixelSizePm || 1, edges = EDGES[options.pixelSizePm ? "pm" : "px"];
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

    function kindOf(spreadPx) {
      if (Number.isNaN(spreadPx)) return KINDS.length - 1;
      const place = edges.findIndex((edge) => spreadPx * unit < edge);
      return place < 0 ? edges.length : place;
    }

    // Sort the atoms that are shown into their classes, once, not at each frame that is drawn.
    function sort() {
      kept = KINDS.map(() => []);
      for (let i = 0; i < atoms.length; i += STRIDE) {
        const s = atoms[i + 3] * unit;
        if (atoms[i + 2] < filter.least || s > filter.most) continue;
        kept[kindOf(atoms[i + 3])].push(atoms[i + 1], atoms[i]);
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
  Object.assign(window.manybeamViewer, { classes, sign, STRIDE });
})();
