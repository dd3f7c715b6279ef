// What a task has written: of it only what is looked at is asked for, and little more is kept.
"use strict";
(() => {
  const output = document.getElementById("output");
  if (!output) return;
  const PARTS = 6; // kept at once
  const place = document.getElementById("output-place");
  const follow = document.getElementById("output-follow");
  const form = document.getElementById("output-search");
  const fixed = output.dataset.attempt;
  let attempt = "", size = 0, busy = Promise.resolve(), searched = "", searchedTo = 0, waiting = false;

  const parts = () => [...output.children];
  const end = () => parts().length ? Number(parts().at(-1).dataset.end) : 0;
  const begin = () => parts().length ? Number(parts()[0].dataset.start) : 0;
  const address = (what, asked) =>
    `/tasks/${encodeURIComponent(output.dataset.task)}/${what}?${new URLSearchParams({ attempt, ...asked })}`;

  const ask = async (what, asked) => {
    const answer = await fetch(address(what, asked), { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  };

  // One after the other: parts join, and none is asked for twice.
  const then = (job) => { busy = busy.then(job).catch((error) => { place.textContent = `Output: ${error.message}`; }); return busy; };

  const element = (part) => {
    const made = document.createElement("span");
    made.dataset.start = part.start;
    made.dataset.end = part.end;
    made.innerHTML = part.html; // escaped by the coordinator
    return made;
  };

  const number = (bytes) => bytes < 1e4 ? `${bytes} bytes` : bytes < 1e7 ? `${Math.round(bytes / 1e3)} kB` : `${Math.round(bytes / 1e6)} MB`;
  const tell = () => {
    place.textContent = !size ? "It has written nothing yet."
      : begin() === 0 && end() === size ? `All of ${number(size)}.`
      : `From ${number(begin())} to ${number(end())} of ${number(size)}.`;
  };

  const append = async () => {
    const part = await ask("output", { where: "after", at: end(), mark: searched });
    size = part.size;
    if (part.end > part.start) output.append(element(part));
    while (output.children.length > PARTS) output.firstElementChild.remove();
    tell();
  };
  const prepend = async () => {
    if (!begin()) return;
    const part = await ask("output", { where: "before", at: begin(), mark: searched });
    const height = output.scrollHeight;
    output.prepend(element(part));
    output.scrollTop += output.scrollHeight - height;
    while (output.children.length > PARTS) output.lastElementChild.remove();
    tell();
  };
  const only = async (where, at) => {
    const part = await ask("output", { where, at, mark: searched });
    size = part.size;
    output.replaceChildren(...(part.end > part.start ? [element(part)] : []));
    tell();
  };
  const toEnd = async () => { await only("before", -1); output.scrollTop = output.scrollHeight; };

  const news = () => {
    const state = document.getElementById("output-state");
    if (!state) return;
    const told = fixed || state.dataset.attempt, length = Number(state.dataset.size);
    if (told === "0") { tell(); return; }
    if (told !== attempt) { attempt = told; output.replaceChildren(); then(toEnd); return; }
    if (fixed || !follow.checked || length <= end() || waiting) return;
    waiting = true; // what comes meanwhile is asked for with it
    then(async () => {
      waiting = false;
      const length = Number(document.getElementById("output-state").dataset.size);
      // Whoever is far behind is shown the end: nobody reads a million lines a second.
      if (length - end() > 4 * 65536) await toEnd(); else if (length > end()) await append();
      output.scrollTop = output.scrollHeight;
    });
  };

  const button = (id, job) => document.getElementById(id).addEventListener("click", () => then(job));
  button("output-begin", async () => { follow.checked = false; await only("after", 0); output.scrollTop = 0; });
  button("output-earlier", async () => { follow.checked = false; await prepend(); });
  button("output-later", append);
  button("output-end", async () => { follow.checked = true; await toEnd(); });
  follow.addEventListener("change", () => { if (follow.checked) then(toEnd); });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = form.elements.text.value;
    if (!text) return;
    if (text !== searched) { searched = text; searchedTo = 0; }
    then(async () => {
      follow.checked = false;
      for (let at = searchedTo; ;) {
        const found = await ask("search", { at, text });
        if (found.at !== null) {
          searchedTo = found.searched;
          await only("around", found.at);
          const marks = [...output.querySelectorAll("mark")];
          (marks[0] || output).scrollIntoView({ block: "center" });
          place.textContent = `“${text}” stands at ${number(found.at)}. Find again goes on.`;
          return;
        }
        if (found.searched >= found.size) {
          searchedTo = 0;
          place.textContent = at || searchedTo ? `“${text}” does not stand further down. Find again begins at the top.` : `“${text}” does not stand there.`;
          return;
        }
        at = found.searched;
        place.textContent = `Searched ${number(at)} of ${number(found.size)} …`;
      }
    });
  });

  document.addEventListener("farm:shown", news);
  news();
})();
