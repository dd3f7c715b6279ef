// A drawing as PNG: the browser draws the file that the coordinator gives, and saves it.
"use strict";
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-png]");
  if (!button) return;
  const said = document.getElementById("said"), image = new Image();
  image.addEventListener("error", () => { said.textContent = "The drawing cannot be read."; });
  image.addEventListener("load", () => {
    const canvas = document.createElement("canvas"), sharp = 2;
    canvas.width = image.naturalWidth * sharp;
    canvas.height = image.naturalHeight * sharp;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => {
      if (!blob) { said.textContent = "This browser cannot save the drawing."; return; }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = button.dataset.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      said.textContent = `${button.dataset.name}: ${Math.round(blob.size / 1000)} kB`;
    }, "image/png");
  });
  image.src = button.dataset.png;
});
