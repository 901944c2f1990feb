// The stream of events, one for all tabs of a browser: a browser allows six connections to a host,
// and each open tab would use one. It runs as a shared worker, or in the page if there is none.
(function () {
  "use strict";

  // Call `tell` with each event, and with null if the server does not answer. Return a function that stops it.
  function listen(tell) {
    let source = null, timer = 0;
    function open() {
      source = new EventSource("/api/v1/events");
      source.addEventListener("state", (event) => tell(JSON.parse(event.data)));
      source.onerror = () => {
        tell(null);
        if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, 2000);
      };
    }
    open();
    return () => { clearTimeout(timer); source.close(); };
  }

  if (self.document) { self.manybeamListen = listen; return; }

  const ports = new Set();
  let last, stop = null;
  function tell(news) {
    last = news;
    ports.forEach((port) => port.postMessage(news));
  }
  function leave(port) {
    ports.delete(port);
    if (ports.size || !stop) return;
    stop();
    stop = null;
    last = undefined;
  }
  self.onconnect = (event) => {
    const port = event.ports[0];
    ports.add(port);
    port.onmessage = () => leave(port);
    if (last !== undefined) port.postMessage(last);
    stop = stop || listen(tell);
  };
})();
