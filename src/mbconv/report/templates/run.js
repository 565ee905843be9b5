// Copy buttons, and the figures of the epoch under the pointer. The page is whole without this.
for (const button of document.querySelectorAll("button[data-copies]")) {
  const source = document.getElementById(button.dataset.copies);
  const name = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Pages opened from a file may lack the clipboard: select the text and use the old way.
      getSelection().selectAllChildren(source);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = name; }, 2000);
  });
}

for (const group of document.querySelectorAll("[data-readout]")) {
  const readout = group.querySelector(".readout");
  const usual = readout.textContent;
  const stops = [...group.querySelectorAll(".stop")];
  const show = (index) => {
    for (const stop of stops) stop.classList.toggle("on", stop.dataset.index === index);
    const stop = stops.find((s) => s.dataset.index === index);
    readout.textContent = stop ? stop.dataset.text : usual;
  };
  group.addEventListener("pointerover", (e) => {
    const stop = e.target.closest(".stop");
    if (stop) show(stop.dataset.index);
  });
  group.addEventListener("pointerleave", () => show(null));
}

// What is folded away on the screen belongs on paper, except for long lists and tables of what is drawn above.
const folded = [...document.querySelectorAll("details:not(.stay)")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = folded.filter((d) => !d.open);
  for (const d of opened) d.open = true;
});
addEventListener("afterprint", () => {
  for (const d of opened) d.open = false;
});
