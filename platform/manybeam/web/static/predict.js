// Script of /predict: sends a dropped file, and shows a result. Without it the form works too.
(function () {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const DROPPED = "manybeam-dropped";

  // As a sentence begins; a file name, a reference or a command stays as it is.
  function sentence(words) {
    const isPlain = /^[a-z]+[ ,;]/.test(words) && !words.startsWith("manybeam ");
    return isPlain ? words[0].toUpperCase() + words.slice(1) : words;
  }

  function tell(what, hint) {
    const box = byId("told");
    box.replaceChildren();
    if (!what) return;
    const note = document.createElement("div"), text = document.createElement("div"), strong = document.createElement("strong");
    note.className = "alert alert-danger";
    strong.textContent = `${sentence(what)}.`;
    text.append(strong, hint ? ` ${sentence(hint)}.` : "");
    note.append(text);
    box.append(note);
    box.scrollIntoView({ block: "nearest" });
  }

  // -- sending: the newest file wins ---------------------------------------------------------
  const form = byId("ask");
  let current = null, since = 0, ticking = null;

  function working(words, share) {
    byId("working").hidden = !words;
    byId("working-words").textContent = words;
    const bar = byId("working-bar");
    if (share === null) bar.removeAttribute("value"); else bar.value = share;
  }

  const analysis = new AbortController();
  function stop() {
    analysis.abort();
    if (current) { const old = current; current = null; old.abort(); }
    clearInterval(ticking);
    working("", null);
  }

  function send(file, isAgain) {
    stop();
    tell("");
    const data = new FormData(form);
    data.append("quick", "1");  // the frame is analysed when its first atoms are on the screen
    if (file) {
      ["again", "frameset", "frame", "file"].forEach((name) => data.delete(name));
      if (file.size > Number(form.dataset.most)) {
        tell(`${file.name} is too large`, `at most ${Math.round(form.dataset.most / 1e6)} MB are read; crop the frame, or export one frame of the stack`);
        return;
      }
      data.append("file", file);
    }
    const chosen = file || data.get("file"), name = (chosen && chosen.name) || "the frame";
    const request = new XMLHttpRequest();
    current = request;
    since = Date.now();
    sessionStorage.setItem(DROPPED, since);
    working(`Sending ${name}`, 0);
    request.upload.onprogress = (event) => { if (event.lengthComputable) working(`Sending ${name}`, event.loaded / event.total); };
    request.upload.onload = () => {
      const look = () => working(`Reading ${name} and finding atoms, ${Math.round((Date.now() - since) / 1000)} s`, null);
      look();
      ticking = setInterval(look, 1000);
    };
    request.onload = () => { if (request === current) heard(request, file, isAgain); };
    request.onerror = () => {
      if (request !== current) return;
      stop();
      tell("the server of this page does not answer", "it may have been stopped; try again when it runs: manybeam web");
    };
    request.open("POST", form.getAttribute("action"));
    request.setRequestHeader("Accept", "application/json");
    request.send(data);
  }

  function heard(request, file, isAgain) {
    let told = {};
    try { told = JSON.parse(request.responseText); } catch { told = { detail: `the server answered HTTP ${request.status}` }; }
    if (request.status === 200) { location[isAgain ? "replace" : "assign"](told.url); return; }
    stop();
    if (request.status === 429) {
      working("The server is busy. It is asked again in a moment", null);
      current = request;
      setTimeout(() => { if (current === request) send(file, isAgain); }, 1500);
      return;
    }
    tell(told.detail || told.title, told.hint);
  }

  if (form) {
    form.addEventListener("submit", (event) => { event.preventDefault(); send(null, false); });
    byId("stop").addEventListener("click", stop);
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("mb-over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("mb-over"); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      document.body.classList.remove("mb-over");
      const { files } = event.dataTransfer;
      if (files.length > 1) { tell(`${files.length} files were dropped`, "drop one frame; for many, use manybeam predict"); return; }
      if (files.length) send(files[0], false);
    });
    window.addEventListener("pageshow", (event) => { if (event.persisted) stop(); });
  }
  const refused = byId("refused");
  if (refused && refused.dataset.retry) setTimeout(() => send(null, true), 1000 * Number(refused.dataset.retry));

  // -- a first answer: frame analysis follows by itself ---------------------------------------
  let isTouched = false;  // then the picture does not change under the hand
  function analyse() {
    const own = byId("analyse");
    if (!own) return;
    const say = (words, isWorking) => {
      byId("analysis-words").textContent = words;
      byId("analysing").hidden = !isWorking;
      byId("analyse-now").hidden = isWorking;
    };
    const failed = (told) => {
      if (analysis.signal.aborted) say("Frame analysis was stopped.", false);
      else say(`The frame could not be analysed: ${told.what || told.detail || "the server of this page does not answer"}.`, false);
    };
    const ask = async () => {
      say("All members analyse the frame now.", true);
      const headers = { Accept: "application/json" };
      const answer = await fetch(own.action, { method: "POST", body: new FormData(own), headers, signal: analysis.signal });
      if (answer.status === 429) { setTimeout(run, 1500); return; }
      const told = await answer.json();
      if (!answer.ok) throw told;
      if (told.error.what) throw told.error;
      if (!isTouched) { location.replace(told.url); return; }
      say("Its analysis is ready.", false);
      byId("analyse-now").textContent = "Show it";
      own.onsubmit = (event) => { event.preventDefault(); location.replace(told.url); };
    };
    const run = () => ask().catch(failed);
    own.addEventListener("submit", stop);
    run();
  }

  // -- a result ------------------------------------------------------------------------------
  const stage = byId("stage");
  if (!stage) return;
  const about = JSON.parse(stage.dataset.viewer), pm = about.pixelSizePm;
  let isGone = false;
  function gone() {
    if (isGone) return;
    fetch(location.pathname, { method: "HEAD" }).then((answer) => {
      if (answer.status !== 404 || isGone) return;
      isGone = true;
      tell("this result is no longer on the server", "the newest results are kept, older ones are deleted; drop the file again");
    }).catch(() => {});
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) gone(); });

  const contrast = { low: 1, high: 99.7, gamma: 1 };
  const tile = (kind, end) => (level, x, y) => `${about.base}/${kind}/${level}/${x}_${y}.${end}`;
  const frame = () => { const query = new URLSearchParams(contrast); return (level, x, y) => `${tile("frame", "jpg")(level, x, y)}?${query}`; };
  function made(label, isFirst) {
    const box = document.createElement("div");
    box.className = "mb-viewer";
    stage.append(box);
    return manybeamViewer(box, {
      width: about.width, height: about.height, tile: about.tile, pixelSizePm: pm, frame: frame(),
      spread: about.hasAnswer ? tile("spread", "png") : null, label, navigator: isFirst && stage.clientWidth > 700,
      on: { gone, point: pointed },
    });
  }

  function pointed(at) {
    if (!at) return;
    const places = [`y ${at.y.toFixed(1)}, x ${at.x.toFixed(1)} px`];
    if (pm) places.push(`y ${(at.y * pm).toFixed(0)}, x ${(at.x * pm).toFixed(0)} pm`);
    if (at.atom) {
      const spread = Number.isNaN(at.atom.spreadPx) ? "unknown" : pm ? `${(at.atom.spreadPx * pm).toFixed(1)} pm` : `${at.atom.spreadPx.toFixed(2)} px`;
      places.push(`atom here: probability ${at.atom.probability.toFixed(2)}, spread ${spread}`);
    }
    byId("readout").textContent = places.join(" · ");
  }

  const main = made("Frame with the atoms; arrows move it, + and - zoom", true);
  window.manybeamMain = main;
  if (!about.hasAnswer) return;

  const known = new Map();
  const load = (member) => {
    if (!known.has(member)) {
      known.set(member, fetch(`${about.base}/atoms.f32?member=${member}`).then((answer) => {
        if (!answer.ok) { gone(); throw new Error(`HTTP ${answer.status}`); }
        return answer.arrayBuffer();
      }).then((bytes) => new Float32Array(bytes)));
    }
    return known.get(member);
  };

  let member = -1, beside = null, asked = 0;
  const filter = { least: 0, most: Infinity };
  const viewers = () => (beside ? [main, beside] : [main]);
  const nameOf = (index) => (index < 0 ? "all together" : `member ${String(index).padStart(2, "0")}`);

  function legend() {
    const counts = main.counts, box = byId("legend"), names = manybeamAtoms.classes(pm);
    box.replaceChildren(...names.map((name, place) => {
      const row = document.createElement("span"), count = document.createElement("b");
      count.textContent = counts[place];
      row.append(manybeamAtoms.sign(place), `${name} `, count);
      row.hidden = place === names.length - 1 && !counts[place];
      return row;
    }));
    byId("shown-count").textContent = counts.reduce((sum, one) => sum + one, 0);
  }

  // The member is in the large viewer; side by side, the ensemble stays there and the member is beside.
  function show(next) {
    member = next;
    const own = ++asked;
    byId("member-name").value = nameOf(member);
    const wanted = beside ? [load(-1), load(member < 0 ? about.members[0] : member)] : [load(member)];
    return Promise.all(wanted).then((found) => {
      if (own !== asked) return;
      found.forEach((atoms, place) => viewers()[place].setAtoms(atoms));
      byId("all-count").textContent = found[0].length / manybeamViewer.STRIDE;
      legend();
    }).catch(() => {});
  }

  const order = [-1, ...about.members];
  function step(by) {
    const place = order.indexOf(member), first = beside ? 1 : 0, count = order.length - first;
    show(order[first + ((place - first + by + count) % count)]);
  }

  function setSide(isOn) {
    byId("side").checked = isOn;
    stage.classList.toggle("mb-side-by-side", isOn);
    if (isOn && !beside) {
      if (member < 0) member = about.members[0];
      beside = made("The same frame with the atoms of one member", false);
      beside.follow(main);
      beside.setFilter(filter);
      beside.setAtomsOn(byId("atoms-on").checked);
    } else if (!isOn && beside) {
      beside.close();
      stage.lastElementChild.remove();
      beside = null;
    }
    show(member);
  }

  const written = { least: (v) => v.toFixed(2), most: (v) => (v >= spreadTop ? "none" : `${v.toFixed(1)} ${pm ? "pm" : "px"}`), opacity: (v) => `${Math.round(100 * v)} %`, low: (v) => `${v} % of pixels`, high: (v) => `${v} % of pixels`, gamma: (v) => v.toFixed(1) };
  let spreadTop = 100, waiting = null;
  function slid(event) {
    const { id, valueAsNumber } = event.target;
    if (!written[id]) return;
    byId(`${id}-out`).value = written[id](valueAsNumber);
    if (id === "least") filter.least = valueAsNumber;
    if (id === "most") filter.most = valueAsNumber >= spreadTop ? Infinity : valueAsNumber;
    if (id === "least" || id === "most") { viewers().forEach((one) => one.setFilter(filter)); legend(); }
    if (id === "opacity") viewers().forEach((one) => one.setSpread(valueAsNumber));
    if (id in contrast) {
      contrast[id] = valueAsNumber;
      clearTimeout(waiting);
      waiting = setTimeout(() => viewers().forEach((one) => one.setFrame(frame())), 150);
    }
  }

  function begin() {
    spreadTop = Math.max(Math.ceil(10 * main.largestSpread) / 10, pm ? 1 : 0.1);
    Object.assign(byId("most"), { max: spreadTop, step: spreadTop / 100, value: spreadTop });
    byId("most").max = spreadTop;
    byId("most").value = spreadTop;
    byId("controls").hidden = false;
    byId("controls").addEventListener("input", slid);
    Object.keys(written).forEach((id) => { byId(`${id}-out`).value = written[id](byId(id).valueAsNumber); });
    byId("member-back").addEventListener("click", () => step(-1));
    byId("member-on").addEventListener("click", () => step(1));
    byId("side").addEventListener("change", (event) => setSide(event.target.checked));
    byId("atoms-on").addEventListener("change", (event) => viewers().forEach((one) => one.setAtomsOn(event.target.checked)));
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && !/^(checkbox|range)$/.test(event.target.type)) return;
    if (event.key === "[") step(-1);
    if (event.key === "]") step(1);
    if (event.key === "a") byId("atoms-on").click();
    if (event.key === "s") { const one = byId("opacity"); one.value = one.valueAsNumber ? 0 : 0.6; one.dispatchEvent(new Event("input", { bubbles: true })); }
    if (event.target.closest(".mb-viewer")) return;  // there the viewer has keys of its own
    if (event.key === "+") main.osd.viewport.zoomBy(1.5);
    if (event.key === "-") main.osd.viewport.zoomBy(1 / 1.5);
    if (event.key === "0") main.osd.viewport.goHome();
  });

  function ready() {
    ["pointerdown", "wheel", "keydown", "input"].forEach((kind) => document.addEventListener(kind, () => { isTouched = true; }, { capture: true, passive: true }));
    begin();
    legend();
    const dropped = Number(sessionStorage.getItem(DROPPED));
    sessionStorage.removeItem(DROPPED);
    performance.mark("manybeam-atoms");
    stage.dataset.atoms = main.counts.reduce((sum, one) => sum + one, 0);
    if (dropped) stage.dataset.ms = Date.now() - dropped;
    analyse();
    if (!about.isQuick && byId("ranking") && !document.querySelector(".mb-best-members")) {
      htmx.ajax("GET", `${about.base}?ranking=1`, { target: "#ranking", select: "#ranking", swap: "outerHTML" }).catch(() => {});
    }
  }
  const opened = new Promise((done) => main.osd.addOnceHandler("open", done));
  Promise.all([show(-1), opened]).then(() => requestAnimationFrame(ready));
})();
