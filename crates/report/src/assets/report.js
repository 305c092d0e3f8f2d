"use strict";
// Sorting of tables by a click on a heading; everything else works without this script.
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
// Paper has nothing to unfold.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
