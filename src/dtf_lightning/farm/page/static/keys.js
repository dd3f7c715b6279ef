// Everything by keyboard. Single keys do nothing while something is typed.
"use strict";
(() => {
  const help = document.getElementById("help");
  const screens = { n: "/", t: "/tasks", r: "/grid", m: "/compare", l: "/trainings", f: "/fleet", c: "/cluster" };
  let going = false;

  const rows = () => [...document.querySelectorAll("#live tr[data-state] a.open")];
  const step = (by) => {
    const found = rows(), at = found.indexOf(document.activeElement);
    found[at < 0 ? (by > 0 ? 0 : found.length - 1) : Math.min(Math.max(at + by, 0), found.length - 1)]?.focus();
  };
  const nextFailed = () => {
    const found = rows(), at = found.indexOf(document.activeElement);
    const order = [...found.slice(at + 1), ...found.slice(0, at + 1)];
    order.find((link) => ["failed", "expired"].includes(link.closest("tr").dataset.state))?.focus();
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    if (typing && event.key === "Escape") { event.target.blur(); return; }
    if (typing || event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (going) {
      going = false;
      if (screens[event.key]) { event.preventDefault(); location.assign(screens[event.key]); return; }
    }
    switch (event.key) {
      case "/": { const search = document.getElementById("search"); if (search) { event.preventDefault(); search.focus(); } break; }
      case "j": step(1); break;
      case "k": step(-1); break;
      case "n": nextFailed(); break;
      case "g": going = true; break;
      case "?": help.showModal(); break;
    }
  });
  document.getElementById("help-button").addEventListener("click", () => help.showModal());
})();
