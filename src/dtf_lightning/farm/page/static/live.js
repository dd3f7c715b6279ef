// Keeps what is shown true: a stream of events from the coordinator, from another one where this one has gone.
"use strict";
(() => {
  const live = document.getElementById("live");
  const connection = document.getElementById("connection");
  const SILENCE = 12000; // milliseconds without a word after which a coordinator is taken for dead; it says one every 5 s
  const PATIENCE = 1500; // for another coordinator to answer, and for this one to come back before others are asked
  let source = null, seen = live.dataset.id, lastWord = Date.now(), lostAt = 0, looking = false;

  const say = (text, lost) => {
    if (connection.textContent !== text) connection.textContent = text;
    connection.classList.toggle("lost", lost);
  };

  const localTimes = (root) => {
    for (const element of root.querySelectorAll("time[datetime]")) {
      const when = new Date(element.dateTime);
      if (isNaN(when)) continue;
      const two = (number) => String(number).padStart(2, "0");
      element.textContent = `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())} ` +
        `${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}`;
      element.title = element.dateTime;
    }
  };

  const show = (html) => {
    // What has the focus, is scrolled or opened stays so: elements are changed, not replaced.
    Idiomorph.morph(live, html, { morphStyle: "innerHTML", ignoreActiveValue: true });
    localTimes(live);
    htmx.process(live);
    live.dispatchEvent(new CustomEvent("farm:shown", { bubbles: true }));
  };

  const word = () => { lastWord = Date.now(); lostAt = 0; say("live", false); };

  const open = () => {
    if (!seen || source || document.hidden) return;
    const address = new URL(live.dataset.address, location.href);
    address.searchParams.set("seen", seen);
    source = new EventSource(address);
    lastWord = Date.now();
    source.addEventListener("open", word);
    source.addEventListener("beat", word);
    source.addEventListener("view", (event) => { word(); seen = event.lastEventId; show(event.data); });
    source.addEventListener("error", lost);
  };

  const close = () => { if (source) { source.close(); source = null; } };

  const lost = () => {
    if (!lostAt) lostAt = Date.now();
    say("connection lost, looking for a coordinator", true);
    if (source && source.readyState === EventSource.CLOSED) close(); // refused: asked again by `look`
  };

  // Where the other coordinators are as this browser reaches them: where they are on its own machine, under the name that it used.
  const loopback = ["127.0.0.1", "localhost", "[::1]"];
  const others = () => (document.getElementById("farm-state")?.dataset.addresses || "").split(" ").filter(Boolean)
    .map((address) => { const url = new URL(address); if (loopback.includes(url.hostname)) url.hostname = location.hostname; return url.origin; })
    .filter((origin) => origin !== location.origin);

  const answers = async (origin) => {
    try {
      await fetch(`${origin}/static/icon.svg`, { mode: "no-cors", cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      return true;
    } catch { return false; }
  };

  const look = async () => {
    if (document.hidden || !seen) return;
    if (!lostAt && Date.now() - lastWord > SILENCE) { close(); lost(); }
    if (!source) open();
    if (!lostAt || Date.now() - lostAt < PATIENCE || looking) return;
    looking = true;
    try {
      for (const origin of others()) {
        if (await answers(origin) && lostAt) {
          close();
          location.replace(origin + location.pathname + location.search);
          return;
        }
      }
    } finally { looking = false; }
  };

  // A hidden page asks for nothing: a browser keeps few connections to a coordinator open, for all of its pages.
  document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else { lostAt = 0; open(); } });
  addEventListener("pagehide", close);
  document.body.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-DTF-Farm"] = "page"; });
  document.body.addEventListener("htmx:sendError", () => {
    document.getElementById("said").textContent = "The coordinator does not answer: nothing was done.";
  });
  localTimes(document);
  if (seen) { open(); setInterval(look, 500); }
})();
