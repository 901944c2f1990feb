// The signs of atoms, by the spread of their position between members; for every page that shows some.
//
//   manybeamAtoms.kindOf(spreadPx, pixelSizePm)   place of its class in `kinds`
//   manybeamAtoms.paint(pen, points, kind, radius, width)   points: x, y, x, y, ...
//   manybeamAtoms.classes(pixelSizePm)   names of the classes;  manybeamAtoms.sign(place)   a drawing
(function () {
  "use strict";
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

  function kindOf(spreadPx, pixelSizePm) {
    if (Number.isNaN(spreadPx)) return KINDS.length - 1;
    const edges = EDGES[pixelSizePm ? "pm" : "px"];
    const place = edges.findIndex((edge) => spreadPx * (pixelSizePm || 1) < edge);
    return place < 0 ? edges.length : place;
  }

  window.manybeamAtoms = { kinds: KINDS, paint, classes, sign, kindOf };
})();
