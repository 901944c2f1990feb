// What the pages gain from a script: live update, keys, copying, the plot. They read without it.
(function () {
  "use strict";
  const byId = (id) => document.getElementById(id);

  function refresh() {
    const main = byId("main");
    if (!main || !main.hasAttribute("data-live") || location.search.includes("done=")) return Promise.resolve();
    if (document.querySelector("#refused")) return Promise.resolve();
    return htmx.ajax("GET", location.href, { target: "#main", select: "#main", swap: "outerMorph", isLive: true });
  }

  // What is shown stays if the new state cannot be had.
  document.addEventListener("htmx:before:response", (event) => {
    const { isLive, response } = event.detail.ctx;
    if (isLive && response.status >= 400) event.preventDefault();
  });

  // -- live update: one stream a tab ---------------------------------------------------------
  function say(text) {
    const live = byId("live");
    live.textContent = text;
    live.classList.add("shown");
    setTimeout(() => live.classList.remove("shown"), 8000);
  }

  let last = null;
  function listen() {
    const source = new EventSource("/api/v1/events");
    source.addEventListener("state", (event) => {
      const news = JSON.parse(event.data);
      byId("offline").hidden = true;
      const { state, fresh } = byId("main").dataset;
      const isNew = news.state !== state || news.is_fresh !== (fresh === "1") || (last && last.boot !== news.boot);
      const told = last && news.told && news.state !== last.state ? news.told + ". The page is up to date." : "";
      last = news;
      if (isNew) refresh().then(() => { if (told) say(told); }).catch(() => {});
    });
    source.onerror = () => {
      byId("offline").hidden = false;
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
    };
    window.addEventListener("pagehide", () => source.close(), { once: true });
  }
  window.addEventListener("pageshow", (event) => { if (event.persisted) listen(); });

  // -- keys ----------------------------------------------------------------------------------
  function move(step) {
    const rows = [...document.querySelectorAll("tr[data-row]")];
    if (!rows.length) return;
    const now = rows.findIndex((row) => row.classList.contains("mb-here"));
    const next = Math.min(Math.max(now + step, 0), rows.length - 1);
    rows.forEach((row) => row.classList.remove("mb-here"));
    rows[next].classList.add("mb-here");
    const link = rows[next].querySelector("th a");
    if (link) link.focus({ preventScroll: true });
    rows[next].scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
    if (event.key === "Escape" && isTyping) event.target.blur();
    if (isTyping || byId("keys").open) return;
    if (event.key === "/") { const q = byId("q"); if (q) { event.preventDefault(); q.focus(); q.select(); } }
    if (event.key === "j") move(1);
    if (event.key === "k") move(-1);
    if (event.key === "x") { const box = document.querySelector("tr.mb-here input[type=checkbox]"); if (box) box.click(); }
    if (event.key === "?") byId("keys").showModal();
  });

  // -- what is on the page ---------------------------------------------------------------------
  function plot(box) {
    const found = JSON.parse(box.dataset.plot);
    if (!window.uPlot || !found.conditions.length || box.firstChild) return;
    const ink = getComputedStyle(document.body).color, line = getComputedStyle(document.querySelector(".card")).borderTopColor;
    const x = found.conditions.map((_, i) => i);
    const strong = found.lines.find((one) => one.label === "ensemble") || found.lines[found.lines.length - 1];
    const series = [{}], data = [x];
    for (const one of found.lines.filter((one) => one !== strong)) {
      const isClassical = one.label === "classical";
      series.push({ label: one.label, stroke: isClassical ? "#e8590c" : ink, width: 0, paths: () => null, points: { show: true, size: isClassical ? 8 : 5, width: isClassical ? 2 : 1, stroke: isClassical ? "#e8590c" : ink, fill: "transparent" } });
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
    new ResizeObserver(() => chart.setSize({ width: box.clientWidth, height: 280 })).observe(box);
  }

  function shared(names) {
    let end = 0;
    while (names.every((one) => one[end] && one[end] === names[0][end])) end += 1;
    return names[0].slice(0, names[0].lastIndexOf("-", end) + 1);
  }

  function enhance() {
    document.querySelectorAll("[data-plot]").forEach(plot);
    document.querySelectorAll("[data-copy]").forEach((button) => { button.hidden = !navigator.clipboard; });
    const theme = byId("theme"), now = document.documentElement.dataset.bsTheme;
    if (theme) theme.href = `/theme/${now === "dark" ? "light" : "dark"}?back=${encodeURIComponent(location.pathname + location.search)}`;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = button.closest(".mb-snippet").querySelector("pre").textContent;
    navigator.clipboard.writeText(text).then(() => say("Copied."));
  });
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-auto]");
    if (form && event.target.type !== "text") form.requestSubmit();
  });

  enhance();
  document.addEventListener("htmx:after:swap", enhance);
  document.addEventListener("htmx:after:settle", enhance);
  listen();
})();
