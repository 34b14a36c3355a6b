/** Elements for an answer and its cited passages. Models and documents are untrusted: text only. */

import { h, say } from './dom.js';
import type { Host } from './host.js';
import type { ResponseContent, Source } from '../client/messages.js';
import { fileOf } from '../paths.js';

/** Maximum number of citation buttons per answer: a model that repeats itself must not freeze the page. */
const MAX_MARKERS = 300;
const CODE_OR_MARKER = /```[\s\S]*?(?:```|$)|`[^`\n]+`|\[(\d{1,4})\]/g;

/** Show an answer; each `[n]` opens the passage below. */
export function showAnswer(content: ResponseContent, host: Host): HTMLElement {
  const passages = new Map(content.sources.map((source) => [source.number, showPassage(source, host)]));
  const text = h('div', { class: 'rk-text' });
  let at = 0;
  let markers = 0;
  for (const match of content.answer.matchAll(CODE_OR_MARKER)) {
    text.append(content.answer.slice(at, match.index));
    at = match.index + match[0].length;
    const passage = markers < MAX_MARKERS ? passages.get(Number(match[1])) : undefined;
    markers += passage ? 1 : 0;
    text.append(match[1] === undefined ? showCode(match[0]) : passage ? marker(match[1], passage) : match[0]);
  }
  text.append(content.answer.slice(at));
  return h(
    'div',
    { class: 'rk-answer' },
    text,
    ...(passages.size ? [h('ul', { class: 'rk-passages' }, ...passages.values())] : []),
    h('div', { class: 'rk-quiet' }, footer(content, host)),
  );

  function marker(number: string, passage: HTMLElement): HTMLElement {
    const source = content.sources.find((source) => String(source.number) === number)!;
    const open = (): void => {
      const details = passage.querySelector('details')!;
      details.open = !details.open;
      if (details.open) {
        passage.scrollIntoView({ block: 'nearest' });
        details.querySelector('summary')!.focus({ preventScroll: true });
      }
    };
    const label = host.words.__('Passage %1: %2', number, placeOf(source, host));
    return h('button', { type: 'button', class: 'rk-marker', title: label, 'aria-label': label, click: open }, number);
  }
}

function showCode(code: string): HTMLElement {
  const fence = code.startsWith('```');
  const text = fence ? code.replace(/^```.*\n?/, '').replace(/\n?```$/, '') : code.slice(1, -1);
  return h(fence ? 'pre' : 'code', {}, text);
}

function placeOf(source: Source, { words }: Host): string {
  const parts = [source.title, ...(source.heading?.split(' › ') ?? [])].filter(Boolean);
  const place = [...new Set(parts)].join(' › ');
  const page = source.page === null ? '' : `, ${words.__('p. %1', source.page)}`;
  return (place || source.document_id) + page;
}

function showPassage(source: Source, host: Host): HTMLElement {
  const open = host.openSource && host.canOpenSource?.(source);
  const file = fileOf(source.source).replace(/^.*[\\/]/, '');
  const where = open
    ? h(
        'button',
        { type: 'button', class: 'rk-link', title: source.source, click: () => host.openSource?.(source) },
        host.words.__('Open %1', file),
      )
    : h('span', { class: 'rk-quiet', title: source.source }, file);
  return h(
    'li',
    {},
    h(
      'details',
      {},
      h('summary', {}, h('span', { class: 'rk-number-of' }, String(source.number)), ` ${placeOf(source, host)}`),
      h('blockquote', {}, ...quoted(source)),
      where,
    ),
  );
}

/** The passage, with the quoted parts highlighted. Offsets count characters, not UTF-16 units. */
function quoted(source: Source): (Node | string)[] {
  const characters = [...source.text];
  const parts: (Node | string)[] = [];
  let at = 0;
  for (const [start, end] of [...source.quotes].sort((a, b) => a[0] - b[0])) {
    const from = Math.max(start - source.start, at);
    const to = Math.min(end - source.start, characters.length);
    if (to > from) {
      parts.push(characters.slice(at, from).join(''), h('mark', {}, characters.slice(from, to).join('')));
      at = to;
    }
  }
  return [...parts, characters.slice(at).join('')];
}

function footer(content: ResponseContent, { words, format }: Host): string {
  const seconds = content.seconds === undefined ? '' : words.__('%1 s', format.measure(Number(content.seconds.toFixed(1))));
  return [content.index, content.model, seconds].filter(Boolean).join(' · ');
}

/** Create buttons for questions. */
export function showChips(questions: readonly string[], ask: (question: string) => void): HTMLElement {
  const chips = h('div', { class: 'rk-chips' });
  for (const question of questions) {
    const chip = h('button', { type: 'button', class: 'rk-chip', click: () => ask(question) });
    say(chip, question);
    chips.append(chip);
  }
  return chips;
}
