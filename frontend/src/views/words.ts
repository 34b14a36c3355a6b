/** Translated texts. JupyterLab's translation bundle implements this interface; elsewhere `words` does. */

import french from '../locale/fr_FR.json';

export interface Words {
  /** The text in the user's language, `%1`, `%2`, ... replaced. */
  __(text: string, ...values: unknown[]): string;
  /** The singular or plural text for `n`; `%1` is `n`. */
  _n(one: string, many: string, n: number, ...values: unknown[]): string;
}

const CATALOGUES: Record<string, Record<string, unknown>> = { fr: french };

/** Translations for a page without JupyterLab's. */
export function words(language: string): Words {
  const catalogue = CATALOGUES[language.slice(0, 2).toLowerCase()];
  const find = (key: string): string[] | undefined => catalogue?.[key] as string[] | undefined;
  const fill = (text: string, values: unknown[]): string =>
    text.replace(/%(\d)/g, (mark, n) => (n in values ? String(values[n]) : mark));
  return {
    __: (text, ...values) => fill(find(text)?.[0] ?? text, [, ...values]),
    _n: (one, many, n, ...values) => {
      const isOne = catalogue === french ? n < 2 : n === 1;
      return fill((find(one) ?? [one, many])[isOne ? 0 : 1], [, n, ...values]);
    },
  };
}

/** The language of the page: from the document in JupyterLab, otherwise from the browser. */
export function pageLanguage(): string {
  return document.documentElement.lang || navigator.language || 'en';
}

/** A BCP 47 language tag, also from names like fr_FR.UTF-8; English if the name is invalid. */
export function languageTag(language: string): string {
  try {
    return Intl.getCanonicalLocales(language.replace(/\..*$/, '').replaceAll('_', '-'))[0] ?? 'en';
  } catch {
    return 'en';
  }
}

/** Formats numbers, durations and times for the user's language. */
export class Format {
  private readonly whole: Intl.NumberFormat;
  private readonly exact: Intl.NumberFormat;
  private readonly time: Intl.DateTimeFormat;

  constructor(
    private readonly words: Words,
    private readonly language: string,
  ) {
    const tag = languageTag(language);
    this.whole = new Intl.NumberFormat(tag, { maximumFractionDigits: 0 });
    this.exact = new Intl.NumberFormat(tag, { maximumFractionDigits: 4 });
    this.time = new Intl.DateTimeFormat(tag, { hour: '2-digit', minute: '2-digit' });
  }

  count(n: number): string {
    return this.whole.format(n);
  }

  /** A measure, with at most four decimals. */
  measure(x: number): string {
    return this.exact.format(x);
  }

  seconds(seconds: number): string {
    const { words } = this;
    if (seconds < 90) {
      return words.__('%1 s', this.count(Math.max(1, Math.round(seconds))));
    }
    if (seconds < 5400) {
      return words.__('%1 min', this.count(Math.round(seconds / 60)));
    }
    return words.__('%1 h', this.count(Math.round(seconds / 3600)));
  }

  /** A time, with the date if it is not today. */
  when(time: string | number): string {
    const date = new Date(time);
    if (Number.isNaN(date.getTime())) {
      return '';
    }
    const day = date.toDateString() === new Date().toDateString() ? '' : `${date.toLocaleDateString(languageTag(this.language))} `;
    return day + this.time.format(date);
  }
}
