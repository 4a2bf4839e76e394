// A tap on a picture of the overview asks the patch below it, in pixels of the photo; a drag of the slider does not.
const pictures = '#where-colors, #what-colors, #where-segments, #what-segments';
const results = document.querySelector('#results');
let pressed = null;
results.addEventListener('pointerdown', (event) => { pressed = event; }, true);
results.addEventListener('click', (event) => {
  const image = event.target.closest(pictures)?.querySelector('img');
  if (!image || !pressed || event.target.closest('button, .legend, .inner')) return;
  if (Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) > 5) return;
  const box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);  // It may stand in bands.
  const x = (event.clientX - box.left - (box.width - scale * image.naturalWidth) / 2) / scale;
  const y = (event.clientY - box.top - (box.height - scale * image.naturalHeight) / 2) / scale;
  if (x < 0 || y < 0 || x >= image.naturalWidth || y >= image.naturalHeight) return;
  trigger('select', {index: [Math.floor(x), Math.floor(y)], value: null});
}, true);
