"use strict";
// Sorting of tables by a click on a heading, and filters of the feature browsers; everything else works without this script.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const body = table.tBodies[0];
      const compare = (a, b) => {
        const x = a.cells[column], y = b.cells[column];
        const p = x.dataset.key, q = y.dataset.key;
        if (p !== undefined && q !== undefined) return (Number(p) - Number(q)) * (descending ? -1 : 1);
        if (p !== undefined || q !== undefined) return p !== undefined ? -1 : 1;
        return x.textContent.localeCompare(y.textContent, "en", { numeric: true }) * (descending ? -1 : 1);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
for (const browser of document.querySelectorAll(".browser")) {
  const shelves = [...browser.querySelectorAll(".shelf")];
  const bar = document.createElement("div"), shown = document.createElement("output");
  bar.className = "filters";
  const field = (name, control) => {
    const label = document.createElement("label");
    label.append(name + " ", control);
    bar.append(label);
    control.addEventListener("input", update);
    return control;
  };
  const select = (key) => {
    const values = [...new Set(shelves.map((s) => s.dataset[key]))];
    const control = document.createElement("select");
    control.append(new Option("all", "\0"), ...values.map((v) => new Option(v, v)));
    return values.length > 1 ? field(key, control) : control;
  };
  const method = select("method"), hook = select("hook");
  const words = document.createElement("input");
  words.type = "search";
  field("contains", words);
  bar.append(shown);
  shelves[0].before(bar);
  function update() {
    const wanted = words.value.trim().toLowerCase();
    const fits = (control, value) => control.value === "\0" || control.value === value;
    const narrowed = wanted !== "" || method.value !== "\0" || hook.value !== "\0";
    let count = 0;
    for (const shelf of shelves) {
      const here = fits(method, shelf.dataset.method) && fits(hook, shelf.dataset.hook);
      let some = false;
      for (const feature of shelf.querySelectorAll(".feature")) {
        feature.hidden = !here || (wanted !== "" && !feature.textContent.toLowerCase().includes(wanted));
        count += feature.hidden ? 0 : 1;
        some ||= !feature.hidden;
      }
      shelf.hidden = !some;
      shelf.open = narrowed ? some : shelf === shelves[0];
    }
    shown.textContent = count === 1 ? "1 feature" : count + " features";
  }
  update();
}
// Paper has nothing to unfold, and no room for every feature.
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.shelf)").forEach((d) => { d.open = true; }));
