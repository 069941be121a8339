/* The treemap: a module opens on a click or Enter, and all places are stretched so that it fills the picture. */
if (document.getElementById("treemap")) {
  const picture = document.getElementById("treemap"), crumbs = document.getElementById("crumbs");
  const groups = [...picture.querySelectorAll(".group")];
  const SIDES = ["x", "y", "width", "height"];
  const box = (node) => SIDES.map((side) => parseFloat(node.getAttribute(side)));
  const all = [...picture.children].map((node) => [node, box(node)]);
  const home = new Map(groups.map((group) => [group.dataset.m, group]));
  let now = "";
  const open = (module) => {
    const before = now;
    now = module;
    const [x0, y0, w0, h0] = module && home.get(module) ? box0(module) : [0, 0, 100, 100];
    for (const [node, [x, y, w, h]] of all) {
      const group = node.classList.contains("group");
      const inside = x >= x0 - 0.01 && y >= y0 - 0.01 && x + w <= x0 + w0 + 0.01 && y + h <= y0 + h0 + 0.01;
      const shown = inside && (!group || (node.dataset.s === module && node.dataset.m !== module));
      node.setAttribute("visibility", shown ? "visible" : "hidden");
      const place = [(x - x0) / w0, (y - y0) / h0, w / w0, h / h0];
      SIDES.forEach((side, i) => node.setAttribute(side, `${100 * place[i]}%`));
      if (!group) continue;
      if (shown && node.classList.contains("opens")) { node.setAttribute("tabindex", 0); node.setAttribute("role", "button"); }
      else node.removeAttribute("tabindex");
      const text = node.querySelector("text"), width = place[2] * picture.clientWidth, height = place[3] * 420;
      if (text) {
        const label = node.dataset.label, short = label.split(".").pop();
        const fitting = [label, short].find((words) => words.length * 7 + 8 < width);
        text.firstChild.data = fitting || "";
        text.setAttribute("visibility", shown && height > 18 && fitting ? "visible" : "hidden");
        text.lastChild.setAttribute("visibility", shown && width > 72 && height > 36 && text.getAttribute("visibility") === "visible" ? "visible" : "hidden");
      }
    }
    const path = [""];
    for (let group = home.get(module); group; group = home.get(group.dataset.s)) path.splice(1, 0, group.dataset.m);
    crumbs.hidden = !module;
    crumbs.replaceChildren(...path.map((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name || "whole model";
      if (name === module) button.setAttribute("aria-current", "location");
      button.addEventListener("click", () => { open(name); focus(module); });
      return button;
    }));
    if (before !== module && document.activeElement === document.body) focus(before);
  };
  const box0 = (module) => all.find(([node]) => node === home.get(module))[1];
  const focus = (module) => {
    const target = home.get(module);
    (target && target.hasAttribute("tabindex") ? target : picture.querySelector("[tabindex]") || crumbs.lastChild)?.focus();
  };
  picture.addEventListener("click", (event) => {
    const group = event.target.closest(".group");
    if (group && group.classList.contains("opens")) open(group.dataset.m);
  });
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(event.target.dataset.m);
      focus("");
    } else if (event.key === "Escape" && now) {
      const was = now;
      open(home.get(now)?.dataset.s || "");
      focus(was);
    }
  });
  addEventListener("resize", () => open(now));
  open("");
}
