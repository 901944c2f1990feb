// Script of the pages: live update, keys, copying, the plot. The pages can be read without it.
(function () {
  "use strict";
  const byId = (id) => document.getElementById(id);

  function refresh() {
    const main = byId("main");
    if (!main || !main.hasAttribute("data-live")) return Promise.resolve();
    if (document.querySelector("#refused")) return Promise.resolve();
    return htmx.ajax("GET", location.href, { target: "#main", select: "#main", swap: "outerMorph", isLive: true });
  }

  // If the new state cannot be loaded, the page stays as it is.
  document.addEventListener("htmx:before:response", (event) => {
    const { isLive, response } = event.detail.ctx;
    if (isLive && response.status >= 400) event.preventDefault();
  });

  // -- live update: one stream a browser ---------------------------------------------------------
  function say(text) {
    const live = byId("live");
    live.textContent = text;
    live.classList.add("shown");
    setTimeout(() => live.classList.remove("shown"), 8000);
  }

  let last = null;
  function hear(news) {
    byId("offline").hidden = news !== null;
    if (news === null) return;
    const { state, fresh } = byId("main").dataset;
    const isNew = news.state !== state || news.is_fresh !== (fresh === "1") || (last && last.boot !== news.boot);
    const message = last && news.message && news.state !== last.state ? news.message + ". The page is up to date." : "";
    last = news;
    if (isNew) refresh().then(() => { if (message) say(message); }).catch(() => {});
  }

  // A hidden tab does not listen.
  let leave = null;
  function listen() {
    if (leave || document.hidden) return;
    if (!window.SharedWorker) { leave = manybeamListen(hear); return; }
    const { port } = new SharedWorker(byId("live-script").src);
    port.onmessage = (event) => hear(event.data);
    leave = () => { port.postMessage("leave"); port.onmessage = null; };
  }
  function rest() {
    if (leave) leave();
    leave = null;
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : listen()));
  window.addEventListener("pagehide", rest);
  window.addEventListener("pageshow", (event) => { if (event.persisted) { choices(); listen(); } });

  // -- keys ----------------------------------------------------------------------------------
  let here = "";  // name of the row: an update creates the row again
  const rowName = (row) => row.querySelector("th").textContent.trim();
  function mark() {
    document.querySelectorAll("tr[data-row]").forEach((row) => row.classList.toggle("mb-here", rowName(row) === here));
  }

  function move(step) {
    const rows = [...document.querySelectorAll("tr[data-row]")];
    if (!rows.length) return;
    const now = rows.findIndex((row) => rowName(row) === here);
    const next = rows[Math.min(Math.max(now + step, 0), rows.length - 1)];
    here = rowName(next);
    mark();
    const link = next.querySelector("th a");
    if (link) link.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && !/^(checkbox|radio)$/.test(event.target.type);
    if (event.key === "Escape" && isTyping) event.target.blur();
    if (isTyping || byId("keys").open) return;
    if (event.key === "/") { const q = byId("q"); if (q) { event.preventDefault(); q.focus(); q.select(); } }
    if (event.key === "j") move(1);
    if (event.key === "k") move(-1);
    if (event.key === "x") { const box = document.querySelector("tr.mb-here input[type=checkbox]"); if (box) box.click(); }
    if (event.key === "?") byId("keys").showModal();
  });

  // -- rows selected for a comparison, on all pages of the list ---------------------------------
  const CHOSEN = "manybeam-chosen";
  const chosen = () => JSON.parse(sessionStorage.getItem(CHOSEN) || "[]");
  function choose(refs) {
    sessionStorage.setItem(CHOSEN, JSON.stringify(refs));
    choices();
  }

  function choices() {
    if (!byId("compare-button")) return;
    const refs = chosen(), boxes = [...document.querySelectorAll("input[type=checkbox][name=ids]")];
    boxes.forEach((box) => { box.checked = refs.includes(box.value); });
    document.querySelectorAll("input[data-chosen]").forEach((one) => one.remove());
    const shown = boxes.map((box) => box.value);
    // After the table, so that the pinned row is first in a comparison.
    byId("browse").append(...refs.filter((ref) => !shown.includes(ref)).map((ref) => {
      const field = document.createElement("input");
      Object.assign(field, { type: "hidden", name: "ids", value: ref });
      field.setAttribute("form", "compare");
      field.dataset.chosen = "";
      return field;
    }));
    byId("compare-button").textContent = refs.length ? `Compare selected (${refs.length})` : "Compare selected";
    byId("unchoose").hidden = !refs.length;
  }

  // -- content of the page ---------------------------------------------------------------------
  const drawn = new WeakMap();
  function plot(box) {
    const found = JSON.parse(box.dataset.plot), before = drawn.get(box);
    if (before && !box.firstChild) before.forget();
    if (!window.uPlot || !found.conditions.length || box.firstChild) return;
    const ink = getComputedStyle(document.body).color, line = getComputedStyle(document.querySelector(".card")).borderTopColor;
    const x = found.conditions.map((_, i) => i);
    const strong = found.lines.find((one) => one.label === "ensemble") || found.lines[found.lines.length - 1];
    const series = [{}], data = [x];
    for (const one of found.lines.filter((one) => one !== strong)) {
      const named = { classical: "#e8590c", selected: "#2fb344" }[one.label];
      series.push({ label: one.label, stroke: named || ink, width: 0, paths: () => null, points: { show: true, size: named ? 8 : 5, width: named ? 2 : 1, stroke: named || ink, fill: "transparent" } });
      data.push(one.values);
    }
    series.push({ label: strong.label, stroke: "#4299e1", width: 0, paths: () => null, points: { show: true, size: 8, fill: "#4299e1", stroke: "#4299e1" } });
    data.push(strong.values);
    const bars = (u) => {
      u.ctx.save();
      u.ctx.strokeStyle = "#4299e1";
      u.ctx.lineWidth = 2 * devicePixelRatio;
      x.forEach((i) => {
        if (found.low[i] == null || found.high[i] == null) return;
        const at = u.valToPos(i, "x", true);
        u.ctx.beginPath();
        u.ctx.moveTo(at, u.valToPos(found.low[i], "y", true));
        u.ctx.lineTo(at, u.valToPos(found.high[i], "y", true));
        u.ctx.stroke();
      });
      u.ctx.restore();
    };
    const common = found.conditions.length > 1 ? shared(found.conditions) : "";
    const name = (i) => (Number.isInteger(i) && found.conditions[i] ? found.conditions[i].slice(common.length) : "");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
    const chart = new uPlot({
      width: box.clientWidth, height: 280, series, cursor: { drag: { x: false, y: false } }, legend: { show: false },
      scales: { x: { time: false, range: [-0.5, x.length - 0.5] } },
      axes: [
        { ...axis, splits: () => x, values: (_, at) => at.map(name), rotate: -35, size: 90, gap: 6 },
        { ...axis, label: found.key === "f1" ? "F1" : found.key, labelSize: 22 },
      ],
      hooks: { draw: [bars] },
    }, data, box);
    const sized = new ResizeObserver(() => chart.setSize({ width: box.clientWidth, height: 280 }));
    sized.observe(box);
    drawn.set(box, { forget: () => { sized.disconnect(); chart.destroy(); } });
  }

  function shared(names) {
    let end = 0;
    while (names.every((one) => one[end] && one[end] === names[0][end])) end += 1;
    return names[0].slice(0, names[0].lastIndexOf("-", end) + 1);
  }

  function enhance() {
    choices();
    mark();
    document.querySelectorAll("[data-plot]").forEach(plot);
    document.querySelectorAll("[data-copy]").forEach((button) => { button.hidden = !navigator.clipboard; });
    const theme = byId("theme"), now = document.documentElement.dataset.bsTheme;
    if (theme) theme.href = `/theme/${now === "dark" ? "light" : "dark"}?back=${encodeURIComponent(location.pathname + location.search)}`;
  }

  document.addEventListener("click", (event) => {
    if (event.target.id === "unchoose") choose([]);
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = button.closest(".mb-snippet").querySelector("pre").textContent;
    navigator.clipboard.writeText(text).then(() => say("Copied."));
  });
  document.addEventListener("change", (event) => {
    const { name, type, value, checked } = event.target;
    if (name === "ids" && type === "checkbox") choose([...chosen().filter((ref) => ref !== value), ...(checked ? [value] : [])]);
    const form = event.target.closest("form[data-auto]");
    if (form && event.target.type !== "text") form.requestSubmit();
  });

  enhance();
  document.addEventListener("htmx:after:swap", enhance);
  document.addEventListener("htmx:after:settle", enhance);
  listen();
})();
