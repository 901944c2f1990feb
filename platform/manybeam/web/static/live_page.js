// The page of one instrument: it asks for the next frame, and draws it with its atoms.
(function () {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const view = byId("live-view");
  if (!view) return;
  const base = `/live/${encodeURIComponent(view.dataset.instrument)}`;
  const STALE_S = 10, WAIT_S = 3, RETRY_MS = 2000, SESSION_MS = 3000, KEPT = 600;
  let number = 0, trend = [], shown = null, newest = null, isPaused = false, staleTimer = 0, asking = null;

  // -- state -------------------------------------------------------------------------------------
  function become(state, words) {
    if (words !== undefined) byId("live-fault").textContent = words;
    if (view.dataset.state === state) return;
    view.dataset.state = state;
    const badge = byId("live-state");
    badge.className = `badge mb-live-${state}`;
    badge.textContent = state;
    document.querySelectorAll("[data-shown-in]").forEach((part) => { part.hidden = part.dataset.shownIn !== state; });
  }

  function settle(live) {
    clearTimeout(staleTimer);
    const ageS = live.age_s;
    if (ageS > STALE_S) {
      byId("live-age").textContent = `${Math.round(ageS)} s`;
      become("stale");
      return;
    }
    become(live.watch.drifted ? "drifted" : "running");
    staleTimer = setTimeout(() => settle({ ...live, age_s: STALE_S + 1 }), (STALE_S - ageS) * 1000 + 100);
  }

  // -- asking ------------------------------------------------------------------------------------
  async function go() {
    if (asking) asking.abort();  // a loop that rests would go on beside this one
    const mine = asking = new AbortController();
    while (!document.hidden && !mine.signal.aborted) {
      let pause = 0;
      try {
        const answer = await fetch(`${base}/next?after=${number}&wait_s=${number ? WAIT_S : 0.5}`, { signal: mine.signal, cache: "no-store" });
        const content = await answer.json();
        if (answer.ok) hear(content);
        else pause = refused(answer.status, content);
      } catch (error) {
        if (error.name === "AbortError") return;
        become("disconnected", "The server of this page does not answer.");
        pause = RETRY_MS;
      }
      if (pause) await new Promise((done) => { setTimeout(done, pause); });
    }
  }

  function refused(status, problem) {
    clearTimeout(staleTimer);
    if (status === 404) {
      byId("live-body").hidden = true;
      number = 0;
      trend = [];
      shown = newest = null;
      become("empty");
    } else {
      become("disconnected", `${problem.detail || "The prediction service does not answer"}.`);
      byId("live-hint").textContent = problem.hint || "";
    }
    return RETRY_MS;
  }

  function hear(live) {
    if (!live.frame) { become("waiting"); return; }
    if (live.number < number) { trend = []; shown = null; }
    const isNew = live.number !== number;
    number = live.number;
    trend = trend.concat(live.trend).slice(-KEPT);
    settle(live);
    if (!isNew) return;
    newest = live;
    if (!isPaused) show(live);
  }

  // -- showing -----------------------------------------------------------------------------------
  const text = (id, value) => { byId(id).textContent = value; };
  const fixed = (value, digits = 0) => (value === null || value === undefined ? "–" : value.toFixed(digits));

  function show(live) {
    const { frame, watch, latency_ms: latency } = live, size = frame.pixel_size_pm;
    byId("live-body").hidden = false;
    text("frame-name", `${frame.frame_id} · ${frame.shape[1]} × ${frame.shape[0]} px${size ? ` · ${size.toFixed(1)} pm a pixel` : ""}`);
    text("tile-atoms", frame.atoms);
    text("tile-spread", frame.spread_px === null ? "–" : size ? `${(frame.spread_px * size).toFixed(1)} pm` : `${frame.spread_px.toFixed(2)} px`);
    text("tile-p50", latency.p50 === null ? "–" : `${fixed(latency.p50)} ms`);
    text("tile-p95", latency.p95 === null ? "–" : `${fixed(latency.p95)} ms`);
    text("tile-late", `${trend.filter((one) => one.late).length} of ${trend.length}`);
    text("tile-dropped", `${trend.filter((one) => one.dropped).length} of ${trend.length}`);
    const link = document.createElement("a");
    link.href = `/zoo/${encodeURIComponent(frame.ref)}`;
    link.textContent = frame.ref;
    byId("who-ref").replaceChildren(link, `, members ${frame.members.join(", ")}`);
    text("who-why", frame.why);
    text("who-f1", frame.predicted_f1 ? `Predicted F1 ${frame.predicted_f1[0].toFixed(2)} (90 % interval ${frame.predicted_f1[1].toFixed(2)} to ${frame.predicted_f1[2].toFixed(2)}).` : "No predicted F1: the version was not calibrated.");
    text("who-watch", `Drift watch: ${watch.state}.`);
    text("live-drift", watch.change ? watch.change.why : "");
    const field = byId("mark").elements.frame_id;
    field.value = frame.frame_id;
    byId("mark").hidden = false;
    draw(live);
    plots(size);
  }

  function draw(live) {
    const image = new Image();
    image.onload = () => {
      if (shown && shown.live.number > live.number) return;
      const bytes = Uint8Array.from(atob(live.frame.positions), (one) => one.charCodeAt(0));
      shown = { live, image, atoms: new Float32Array(bytes.buffer) };
      paint();
    };
    // A frame that came while nobody looked has no picture any more.
    const isBare = !live.picture && !shown;
    byId("no-picture").hidden = !isBare;
    byId("live-canvas").hidden = isBare;
    if (live.picture) image.src = `data:image/jpeg;base64,${live.picture}`;
  }

  function paint() {
    if (!shown) return;
    const { live, image, atoms } = shown, { frame } = live, canvas = byId("live-canvas");
    const [rows, columns] = frame.shape, scale = (canvas.clientWidth * devicePixelRatio) / columns;
    canvas.width = Math.round(columns * scale);
    canvas.height = Math.round(rows * scale);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = scale < 1;
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (byId("show-atoms").checked) marks(pen, atoms, frame, scale);
    canvas.setAttribute("aria-label", `Frame ${frame.frame_id}, ${frame.atoms} atoms`);
    canvas.dataset.number = live.number;
    canvas.dataset.atoms = atoms.length / 4;
    canvas.dataset.delayMs = Date.now() - Date.parse(frame.at);
  }

  // `atoms` has four numbers an atom: y, x, probability, spread (px).
  function marks(pen, atoms, frame, scale) {
    const size = frame.pixel_size_pm, [rows, columns] = frame.shape;
    const points = manybeamAtoms.kinds.map(() => []);
    for (let i = 0; i < atoms.length; i += 4) points[manybeamAtoms.kindOf(atoms[i + 3], size)].push((atoms[i + 1] + 0.5) * scale, (atoms[i] + 0.5) * scale);
    const step = Math.sqrt((rows * columns) / Math.max(atoms.length / 4, 1));
    const radius = Math.min(Math.max(0.33 * step * scale, 1.5 * devicePixelRatio), 13 * devicePixelRatio);
    points.forEach((places, kind) => { if (places.length) manybeamAtoms.paint(pen, places, manybeamAtoms.kinds[kind], radius, 1.4 * devicePixelRatio); });
    legend(size);
  }

  function legend(size) {
    const box = byId("live-legend"), unit = size ? "pm" : "px";
    if (box.dataset.unit === unit) return;
    box.dataset.unit = unit;
    box.replaceChildren(...manybeamAtoms.classes(size).map((name, place) => {
      const row = document.createElement("li");
      row.append(manybeamAtoms.sign(place), ` ${name}`);
      return row;
    }));
  }

  // -- plots -------------------------------------------------------------------------------------
  const charts = {};
  function plots(size) {
    text("spread-unit", size ? "pm" : "px");
    const times = trend.map((one) => Date.parse(one.at) / 1000);
    chart("drift", times, trend.map((one) => (one.drift === null ? null : Math.max(one.drift, 0))), { limit: 1, label: "drift score" });
    chart("spread", times, trend.map((one) => (one.spread_px === null ? null : one.spread_px * (size || 1))), { label: "spread" });
    chart("ms", times, trend.map((one) => one.ms), { label: "time to answer" });
  }

  function chart(name, times, values, { limit, label }) {
    const box = byId(`plot-${name}`);
    if (!window.uPlot || !box.clientWidth) return;
    const data = limit === undefined ? [times, values] : [times, values, times.map(() => limit)];
    if (charts[name]) { charts[name].setData(data); return; }
    const ink = getComputedStyle(document.body).color, line = getComputedStyle(document.querySelector(".card")).borderTopColor;
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
    const series = [{}, { label, stroke: "#4299e1", width: 2, points: { show: false } }];
    if (limit !== undefined) series.push({ label: "threshold", stroke: "#e8590c", width: 1, dash: [6, 4], points: { show: false } });
    const sizeOf = () => ({ width: box.clientWidth - 8, height: 122 });
    charts[name] = new uPlot({ ...sizeOf(), series, legend: { show: false }, cursor: { drag: { x: false, y: false } }, scales: { y: { range: (_, low, high) => [0, Math.max(high, limit || 0) * 1.1 || 1] } }, axes: [{ ...axis, space: 90 }, { ...axis, size: 44 }] }, data, box);
    new ResizeObserver(() => charts[name].setSize(sizeOf())).observe(box);
  }

  // -- the session -------------------------------------------------------------------------------
  let isAsked = false;
  async function session() {
    if (document.hidden || isAsked) return;
    isAsked = true;
    try {
      const answer = await fetch(`${base}/session`, { cache: "no-store" });
      if (answer.ok) tell(await answer.json());
    } catch { /* the other request says that the server is away */ }
    isAsked = false;
  }

  function tell(found) {
    text("who-policy", found.policy);
    byId("pin").hidden = found.policy === "pinned" || !found.now;
    byId("unpin").hidden = found.policy !== "pinned";
    const strip = byId("live-events");
    strip.parentElement.hidden = false;
    const rows = found.events.slice(0, 20).map((one) => {
      const row = document.createElement("li"), when = document.createElement("time"), kind = document.createElement("strong");
      when.textContent = new Date(one.at).toLocaleTimeString();
      kind.textContent = one.kind;
      const who = one.members.length ? `: ${one.ref}, members ${one.members.join(", ")}` : "";
      row.append(when, " ", kind, `${one.frame_id ? ` at ${one.frame_id}` : ""}${who}. ${one.why}`);
      return row;
    });
    strip.replaceChildren(...rows);
  }

  function say(words) {
    const live = byId("live");
    live.textContent = words;
    live.classList.add("shown");
    setTimeout(() => live.classList.remove("shown"), 8000);
  }

  // -- actions -----------------------------------------------------------------------------------
  document.querySelectorAll("[data-live-form]").forEach((form) => form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    // A newer frame may be shown before the answer comes.
    const data = new URLSearchParams(new FormData(form)), ref = newest ? newest.frame.ref.split("@")[0] : "ENSEMBLE";
    try {
      const answer = await fetch(form.action, { method: "POST", body: data, headers: { accept: "application/json" } });
      const content = await answer.json();
      if (!answer.ok) say(`${content.detail}. ${content.hint}`);
      else if (form.id === "mark") marked(data.get("frame_id"), content.kept, ref);
      else { tell(content); say(form.id === "pin" ? "Pinned: these members answer until you let the service select." : "The service selects again."); }
    } catch { say("The server of this page does not answer."); }
    button.disabled = false;
  }));

  function marked(name, kept, ref) {
    byId("marked").hidden = false;
    text("marked-text", `${name} is kept in ${kept}.`);
    byId("marked").querySelector("code").textContent = `manybeam iterate ${kept} -e ${ref}`;
    say("Marked.");
  }

  const pause = byId("pause");
  pause.hidden = false;
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.setAttribute("aria-pressed", isPaused);
    pause.textContent = isPaused ? "Go on" : "Pause";
    if (!isPaused && newest) show(newest);
  });
  byId("show-atoms").addEventListener("change", paint);
  new ResizeObserver(paint).observe(byId("live-canvas"));
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) asking.abort();
    else go();
  });
  setInterval(session, SESSION_MS);
  go();
})();
