// What the page does by itself: pictures are saved, and a PNG that is dropped anywhere restores its settings.
(() => {
  const save = (name, url) => {
    const link = document.createElement("a");
    link.download = name;
    link.href = url;
    link.click();
  };
  window.disaSave = (name, kind, content) => {
    if (content) save(name, `data:${kind};base64,${content}`);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.save");
    if (button) save(button.dataset.name, button.closest("figure").querySelector("img").src);
  });
  const hasFiles = (event) => event.dataTransfer && event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event) || !event.dataTransfer.files.length) return;
    event.preventDefault();
    const field = document.querySelector("#fields input[type=file]");
    if (!field) return;
    field.files = event.dataTransfer.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });
})();
