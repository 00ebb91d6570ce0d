// What is hard to read or to see on this page: text below 4.5:1, marks of charts below 3:1 (WCAG 2.2, 1.4.3 and 1.4.11).
const channels = text => { const m = text.match(/[\d.]+/g); return m ? [...m.slice(0, 3).map(Number), m[3] === undefined ? 1 : Number(m[3])] : null; };
const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const colour = text => {
  if (!text || text === 'none' || text === 'transparent') return [0, 0, 0, 0];
  if (text.startsWith('rgb')) return channels(text);
  paint.clearRect(0, 0, 1, 1); paint.fillStyle = text; paint.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
};
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ratio = (a, b) => { const [x, y] = [light(a), light(b)]; return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05); };
const ancestors = e => { const all = []; for (; e; e = e.parentElement) all.push(e); return all; };
const base = () => [...[document.querySelector('[data-testid="stApp"]'), document.body].map(e => colour(getComputedStyle(e).backgroundColor)).filter(c => c[3] > 0), [255, 255, 255, 1]][0];
const behind = element => ancestors(element).reverse().reduce((below, e) => { const s = getComputedStyle(e); const c = colour(s.backgroundColor); return over(c, below); }, base());
const faintness = element => ancestors(element).reduce((all, e) => all * Number(getComputedStyle(e).opacity), 1);
const shown = e => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) && e.getBoundingClientRect().width > 1;  // less is for screen readers
const faults = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let texts = 0, marks = 0;
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const e = node.parentElement, said = node.textContent.trim();
  if (!said || !e || ['STYLE', 'SCRIPT', 'NOSCRIPT', 'TITLE', 'DESC'].includes(e.tagName.toUpperCase()) || !shown(e)) continue;
  if (e.closest('[disabled], [aria-disabled="true"], [aria-hidden="true"]:not(svg *), [data-testid="stIconMaterial"]')) continue;
  const style = getComputedStyle(e), svg = e instanceof SVGElement;
  const ink = colour(svg ? style.fill : style.color), below = behind(svg ? e.closest('svg') : e.closest('[data-testid="stSliderThumbValue"]')?.closest('[data-testid="stSlider"]') || e);
  ink[3] *= faintness(e) * (svg ? Number(style.fillOpacity) : 1);
  const found = ratio(over(ink, below), below);
  texts++;
  if (found < 4.5) faults.push(`text ${found.toFixed(2)}: ${said.slice(0, 50)} (${svg ? style.fill : style.color})`);
}
for (const mark of document.querySelectorAll('.vega-embed svg .mark-rect path, .vega-embed svg .mark-area path, .vega-embed svg .mark-line path, .vega-embed svg .mark-symbol path, .vega-embed svg .mark-rule line')) {
  if (mark.closest('.role-axis, .role-legend') || mark.classList.contains('background') || !mark.getClientRects().length) continue;
  const style = getComputedStyle(mark), below = behind(mark.closest('svg')), clear = faintness(mark);
  const best = Math.max(...[['fill', 'fillOpacity'], ['stroke', 'strokeOpacity']].map(([what, how]) => {
    const c = colour(style[what]); c[3] *= Number(style[how]) * clear; return ratio(over(c, below), below); }));
  marks++;
  if (best < 3) faults.push(`mark ${best.toFixed(2)}: ${mark.getAttribute('aria-label') || mark.parentElement.className.baseVal} ${style.fill} ${style.stroke}`);
}
for (const box of document.querySelectorAll('[data-testid="stCheckbox"] label > div:first-of-type, [data-testid="stProgress"] [role="progressbar"] > div')) {
  if (!shown(box)) continue;
  const style = getComputedStyle(box), below = behind(box.parentElement), drawn = [style.backgroundColor];
  if (style.outlineStyle !== 'none') drawn.push(style.outlineColor);
  const best = Math.max(...drawn.map(c => ratio(over(colour(c), below), below)));
  if (best < 3) faults.push(`switch or bar ${best.toFixed(2)}: ${box.closest('[data-testid]').textContent.slice(0, 40)}`);
}
return {faults: [...new Set(faults)].slice(0, 40), texts, marks};
