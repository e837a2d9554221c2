// What Grafana's own data source does for a panel: variables into expressions, answers into data frames.
import { type DataFrame, FieldType, type TimeRange, dateTime, toDataFrame } from '@grafana/data';

const address = new URLSearchParams(location.search);
export const server = address.get('prometheus') ?? 'http://127.0.0.1:9090';
export const minutes = Number(address.get('minutes') ?? 15);
const end = Number(address.get('end') ?? Date.now() / 1000);
export const range: TimeRange = {
  from: dateTime((end - minutes * 60) * 1000),
  to: dateTime(end * 1000),
  raw: { from: `now-${minutes}m`, to: 'now' },
};
const step = Math.max(1, Math.ceil((minutes * 60) / 250));

export type Variable = { name: string; label?: string; type: string; query: string; includeAll?: boolean };

async function ask(path: string, fields: Record<string, string>): Promise<any> {
  const reply = await (await fetch(`${server}/api/v1/${path}?${new URLSearchParams(fields)}`)).json();
  if (reply.status !== 'success') {
    throw new Error(`${reply.error}: ${JSON.stringify(fields)}`);
  }
  return reply.data;
}

// The address chooses (?run=NAME); else all, or the first value of a variable that takes just one.
export async function choose(variables: Variable[]): Promise<Record<string, string>> {
  const scrape = Number(address.get('scrape') ?? 15);
  const chosen: Record<string, string> = {
    __rate_interval: `${Math.max(step + scrape, 4 * scrape)}s`,
    __interval: `${step}s`,
    __range: `${minutes * 60}s`,
  };
  for (const { name, type, query, includeAll } of variables) {
    const given = address.get(name);
    if (given !== null) {
      chosen[name] = given;
    } else if (type !== 'query') {
      chosen[name] = type === 'datasource' ? 'Prometheus' : query;
    } else if (includeAll) {
      chosen[name] = '.*';
    } else {
      const [, series, label] = query.match(/^label_values\((.*), (\w+)\)$/)!;
      const found = await ask(`label/${label}/values`, { 'match[]': fill(series, chosen), ...span() });
      chosen[name] = found[0] ?? '';
    }
  }
  return chosen;
}

export function fill(text: string, chosen: Record<string, string>): string {
  return text.replace(/\$(?:\{(\w+)(?::\w+)?\}|(\w+))/g, (whole, braced, plain) => chosen[braced ?? plain] ?? whole);
}

export async function frames(target: any, chosen: Record<string, string>): Promise<DataFrame[]> {
  const query = fill(target.expr, chosen);
  const { result } = target.instant
    ? await ask('query', { query, time: String(end) })
    : await ask('query_range', { query, ...span(), step: String(step) });
  if (target.format === 'table') {
    return result.length ? [asTable(result)] : [];
  }
  return result.map((series: any) => {
    const points = series.values ?? [series.value];
    const legend = target.legendFormat.replace(/\{\{(\w+)\}\}/g, (_: string, label: string) => series.metric[label] ?? '');
    const value = { name: 'Value', type: FieldType.number, labels: series.metric, config: { displayNameFromDS: legend } };
    return toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: points.map(([time]: [number]) => time * 1000) },
        { ...value, values: points.map(([, text]: [number, string]) => Number(text)) },
      ],
    });
  });
}

function asTable(result: any[]): DataFrame {
  const labels = [...new Set(result.flatMap((series) => Object.keys(series.metric)))].sort();
  return toDataFrame({
    fields: [
      { name: 'Time', type: FieldType.time, values: result.map(({ value }) => value[0] * 1000) },
      ...labels.map((name) => ({ name, type: FieldType.string, values: result.map(({ metric }) => metric[name] ?? '') })),
      { name: 'Value', type: FieldType.number, values: result.map(({ value }) => Number(value[1])) },
    ],
  });
}

function span() {
  return { start: String(end - minutes * 60), end: String(end) };
}
