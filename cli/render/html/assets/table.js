/* Tables: a click on a title sorts by it, words in the filter and the check boxes choose lines. */
for (const table of document.querySelectorAll("table.sortable")) {
  const groups = table.tBodies.length > 1; // a line with its details is a body of its own
  const items = groups ? [...table.tBodies] : [...table.tBodies[0].rows];
  const parent = groups ? table : table.tBodies[0];
  const foot = groups ? table.tFoot : null;
  const line = (item) => (groups ? item.rows[0] : item);
  const keys = (item, i) => {
    const cell = line(item).cells[i], given = cell.dataset.v;
    const text = given === undefined ? cell.textContent.trim() : given;
    return { known: given !== undefined || !["", "-"].includes(text), text, number: text === "" ? NaN : Number(text) };
  };
  const compare = (a, b) => (Number.isNaN(a.number) || Number.isNaN(b.number)
    ? a.text.localeCompare(b.text, "en", { numeric: true }) : a.number - b.number);
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("n") && !head.hasAttribute("data-low") ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const sorted = items.map((item) => [keys(item, i), item]);
      sorted.sort(([a], [b]) => (a.known !== b.known ? (a.known ? -1 : 1) : sign * compare(a, b)));
      for (const [, item] of sorted) parent.insertBefore(item, foot);
    });
  });
  const tools = document.querySelector(`.tools[data-for="${table.id}"]`);
  if (!tools) continue;
  const search = tools.querySelector("input[type=search]"), unfold = tools.querySelector("[data-unfold]");
  const needs = [...tools.querySelectorAll("[data-need]")], told = tools.querySelector("output");
  const choose = () => {
    const words = search ? search.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    let shown = 0, all = 0;
    for (const item of items) {
      const mine = !unfold || item.classList.contains("unfolded") === unfold.checked;
      const tags = (item.dataset.tags || "").split(" "), text = line(item).textContent.toLowerCase();
      const wanted = words.every((word) => text.includes(word))
        && needs.every((box) => !box.checked || tags.includes(box.dataset.need));
      item.hidden = !(mine && wanted);
      all += mine;
      shown += mine && wanted;
    }
    told.textContent = shown === all ? `${all} lines` : `${shown} of ${all} lines`;
  };
  tools.hidden = false;
  tools.addEventListener("input", choose);
  choose();
}
