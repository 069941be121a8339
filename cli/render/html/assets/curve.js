/* Memory over the step: the moment under the pointer, or that the arrow keys lead to, is told below the picture. */
if (document.getElementById("curve-data")) {
  const data = JSON.parse(document.getElementById("curve-data").textContent);
  const canvas = document.getElementById("canvas"), cursor = document.getElementById("cursor");
  const head = document.getElementById("moment-head"), sums = document.getElementById("moment-sums");
  const body = document.getElementById("moment-table").tBodies[0];
  const last = data.moments.length - 1;
  const word = (index) => data.words[index];
  const make = (tag, text, to, title) => {
    const node = document.createElement(tag);
    if (text) node.append(text);
    if (title) node.title = title;
    to.append(node);
    return node;
  };
  const dot = (kind, to) => { const node = make("i", "", to); node.className = `dot k-${kind}`; };
  let at = data.peak;
  const show = (index) => {
    at = Math.max(0, Math.min(last, index));
    const [where, sum, alive] = data.moments[at], x = `${(100 * at) / last}%`;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    head.textContent = `${at === data.peak ? "At the peak" : "At this moment"}: ${word(where)}`;
    sums.textContent = word(sum);
    const rows = alive.map(([kind, what, how, count, size, n]) => {
      const row = document.createElement("tr"), first = make("th", "", row);
      first.scope = "row";
      dot(kind, first);
      first.append(word(what));
      make("td", count > 1 ? `x${count}` : "", row).className = "n";
      make("td", word(size), row, `${n.toLocaleString("en")} bytes`).className = "n";
      make("td", word(how), row);
      return row;
    });
    body.replaceChildren(...rows);
    canvas.setAttribute("aria-valuenow", at);
    canvas.setAttribute("aria-valuetext", `${word(where)}, ${word(sum)}`);
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    show(Math.round(((event.clientX - box.left) / box.width) * last));
  };
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  canvas.setAttribute("role", "slider");
  canvas.setAttribute("aria-valuemin", 0);
  canvas.setAttribute("aria-valuemax", last);
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => { if (document.activeElement !== canvas) show(data.peak); });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in steps) show(at + steps[event.key]);
    else if (event.key === "Home") show(0);
    else if (event.key === "End") show(last);
    else if (event.key === "p") show(data.peak);
    else return;
    event.preventDefault();
  });
  show(at);
}
