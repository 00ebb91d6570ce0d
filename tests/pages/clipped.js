// What does not fit: labels of charts that reach out of their picture or are cut, words cut by their box, a page too wide.
const faults = [];
const shown = e => e.checkVisibility({checkVisibilityCSS: true}) && e.getBoundingClientRect().width > 1;  // less is for screen readers
for (const svg of document.querySelectorAll('.vega-embed svg')) {
  const frame = svg.getBoundingClientRect();
  if (frame.right > window.innerWidth + 1) faults.push(`a chart reaches ${Math.round(frame.right - window.innerWidth)} px out of the page`);
  for (const text of svg.querySelectorAll('text')) {
    const box = text.getBoundingClientRect(), said = text.textContent;
    if (!said.trim() || !box.width) continue;
    const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
    if (out > 2) faults.push(`'${said}' reaches ${Math.round(out)} px out of its chart`);
    if (said.includes('…')) faults.push(`'${said}' is cut`);
  }
}
for (const e of document.querySelectorAll('[data-testid="stMetric"] *, [data-testid="stWidgetLabel"] *, [data-testid="stCaptionContainer"] *, button *, [data-testid="stAlert"] *, h1, h2, h3, ul.key li')) {
  const style = getComputedStyle(e);
  if (shown(e) && style.overflowX !== 'visible' && e.textContent.trim() && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
    faults.push(`'${e.textContent.trim().slice(0, 40)}' is cut by ${e.scrollWidth - e.clientWidth} px`);
}
for (const table of document.querySelectorAll('[data-testid="stTable"]')) {  // on a phone those of many figures scroll, and those that end in words do not
  if (!shown(table) || innerWidth < 700 && !table.closest('.st-key-kernels, .st-key-log_lines, .st-key-sources')) continue;
  for (const e of [table, ...table.querySelectorAll(':scope > div, td, th')])
    if (shown(e) && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
      faults.push(`a table's '${e.textContent.trim().slice(0, 40)}' needs ${e.scrollWidth - e.clientWidth} px more`);
}
for (const tab of document.querySelectorAll('[role="tab"]'))
  if (shown(tab) && tab.getBoundingClientRect().right > window.innerWidth + 1) faults.push(`the tab '${tab.textContent}' is out of the page`);
const title = document.querySelector('h1'), bar = document.querySelector('[data-testid="stHeader"]');
const scrolled = document.querySelector('[data-testid="stMain"]')?.scrollTop || 0;
if (title && bar && title.getBoundingClientRect().top + scrolled < bar.getBoundingClientRect().bottom &&
    !/, 0\)$|transparent/.test(getComputedStyle(bar).backgroundColor)) faults.push('the title is behind the bar');
const wider = document.documentElement.scrollWidth - window.innerWidth;
if (wider > 0) faults.push(`the page is ${wider} px too wide`);
return [...new Set(faults)];
