/* A recommendation: circles lead to their lines, and plans are copied. */
{
  const told = document.getElementById("point");
  const reveal = (rank) => {
    const body = document.getElementById(`c${rank}`);
    if (!body) return;
    body.hidden = false;
    const details = body.querySelector("details");
    details.open = true;
    body.scrollIntoView({ block: "start" });
    details.querySelector("summary").focus({ preventScroll: true });
  };
  for (const point of document.querySelectorAll(".point")) {
    const tell = () => { told.hidden = false; told.textContent = point.getAttribute("aria-label"); };
    point.addEventListener("pointerenter", tell);
    point.addEventListener("focus", tell);
    point.addEventListener("click", (event) => {
      event.preventDefault();
      reveal(point.getAttribute("href").slice(2));
    });
  }
  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch { // not allowed here: select it, so that one key copies it
        getSelection().selectAllChildren(text);
        button.textContent = "Selected: press Ctrl+C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 3000);
    });
  }
}
