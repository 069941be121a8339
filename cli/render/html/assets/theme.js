"use strict";
/* What needs a script is shown only where there is one; the button swaps light and dark. */
{
  for (const hidden of document.querySelectorAll(".js")) hidden.hidden = false;
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.title = "Change the colours of the page";
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  name();
  /* A name that its piece has no room for is left out; the legend has it. */
  const fit = () => {
    for (const text of document.querySelectorAll(".strip svg text")) {
      const room = text.parentNode.getBoundingClientRect().width;
      text.setAttribute("visibility", text.getComputedTextLength() + 10 > room ? "hidden" : "visible");
    }
  };
  addEventListener("resize", fit);
  document.addEventListener("toggle", fit, true);
  fit();
}
