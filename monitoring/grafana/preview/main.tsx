// Shows one committed board with Grafana's published components: ?board=run&prometheus=http://127.0.0.1:9090&minutes=15
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import {
  type DataFrame,
  EventBusSrv,
  type FieldConfigSource,
  FieldConfigOptionsRegistry,
  FieldType,
  ThemeContext,
  applyFieldOverrides,
  createTheme,
  getFieldDisplayValues,
  renderMarkdown,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, Icon, PanelChrome, PanelContextProvider, Table, TimeSeries } from '@grafana/ui';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import { type Variable, choose, fill, frames, minutes, range } from './prometheus';

const STANDARD = ['unit', 'min', 'max', 'decimals', 'thresholds', 'noValue', 'color', 'mappings', 'displayName', 'links'];
const CUSTOM = ['lineWidth', 'fillOpacity', 'showPoints', 'lineStyle', 'stacking', 'thresholdsStyle', 'scaleDistribution'];
CUSTOM.push('axisSoftMin', 'axisSoftMax', 'width', 'cellOptions');

const option = (path: string, isCustom: boolean): any => ({
  id: isCustom ? `custom.${path}` : path,
  path,
  name: path,
  isCustom,
  process: (value: unknown) => value,
  shouldApply: () => true,
});
standardFieldConfigEditorRegistry.setInit(() => STANDARD.map((path) => option(path, false)));
const registry = new FieldConfigOptionsRegistry(() => [
  ...STANDARD.map((path) => option(path, false)),
  ...CUSTOM.map((path) => option(path, true)),
]);
const transformations = new Map(Object.values(standardTransformers).map((one: any) => [one.id, one]));  // two have aliases
standardTransformersRegistry.setInit(() => [...transformations.values()].map((one) => ({ ...one, transformation: one })));
const theme = createTheme({ colors: { mode: 'dark' } });
const CELL = 30;
const GAP = 8;

async function load(panel: any, chosen: Record<string, string>): Promise<DataFrame[]> {
  const asked = await Promise.all(panel.targets.map((target: any) => frames(target, chosen)));
  const data = await lastValueFrom(transformDataFrame(panel.transformations ?? [], asked.flat()));
  const thresholds = { mode: 'absolute', steps: [{ value: null, color: 'green' }] };
  const defaults = { color: { mode: panel.type === 'timeseries' ? 'palette-classic' : 'thresholds' }, thresholds };
  const fieldConfig = { ...panel.fieldConfig, defaults: { ...defaults, ...panel.fieldConfig.defaults } };
  const replaceVariables = (text: string) => fill(text, chosen);
  return applyFieldOverrides({ data, fieldConfig, fieldConfigRegistry: registry, replaceVariables, theme, timeZone: 'utc' });
}

function Numbers({ panel, data, width, height }: any) {
  const fieldConfig: FieldConfigSource = panel.fieldConfig;
  const reduceOptions = { ...panel.options.reduceOptions, values: false };
  const values = getFieldDisplayValues({ data, fieldConfig, reduceOptions, theme, replaceVariables: String });
  const named = panel.options.textMode === 'value_and_name';
  return (
    <div style={{ display: 'flex' }}>
      {values.map(({ display }, place) => (
        <BigValue
          key={place}
          value={named ? display : { ...display, title: undefined }}
          colorMode={panel.options.colorMode}
          graphMode={panel.options.graphMode}
          textMode={panel.options.textMode}
          width={width / values.length}
          height={height}
          theme={theme}
        />
      ))}
    </div>
  );
}

function Lines({ panel, data, width, height }: any) {
  const { legend } = panel.options;
  return (
    <TimeSeries frames={data} width={width} height={height} legend={legend} timeRange={range} timeZone="utc">
      {() => null}
    </TimeSeries>
  );
}

function Content({ panel, data, chosen, width, height }: any) {
  if (panel.type === 'text') {
    const __html = renderMarkdown(fill(panel.options.content, chosen));
    return <div className="markdown-html" style={{ padding: 8 }} dangerouslySetInnerHTML={{ __html }} />;
  }
  if (panel.type === 'stat') {
    return <Numbers panel={panel} data={data} width={width} height={height} />;
  }
  if (!data.length || !data.some((frame: DataFrame) => frame.length)) {
    const none = panel.fieldConfig.defaults.noValue ?? 'No data';
    return <div style={{ textAlign: 'center', lineHeight: `${height}px`, opacity: 0.6 }}>{none}</div>;
  }
  if (panel.type === 'table') {
    return <Table data={data[0]} width={width} height={height} />;
  }
  return <Lines panel={panel} data={data} width={width} height={height} />;
}

function Panel({ panel, chosen, width, height }: any) {
  const [data, setData] = useState<DataFrame[] | undefined>(panel.type === 'text' ? [] : undefined);
  useEffect(() => void (panel.targets && load(panel, chosen).then(setData)), []);
  const { title, description } = panel;
  return (
    <PanelChrome title={title} description={description} width={width} height={height} padding="md">
      {(w, h) => (data ? <Content panel={panel} data={data} chosen={chosen} width={w} height={h} /> : <div />)}
    </PanelChrome>
  );
}

function Bar({ board, chosen }: any) {
  const box = { border: `1px solid ${theme.colors.border.medium}`, padding: '4px 10px', marginRight: 14, borderRadius: 2 };
  const shown = board.templating.list.map(({ name, label }: Variable) => (
    <span key={name}>
      <span style={{ ...box, marginRight: 0, borderRight: 0, background: theme.colors.background.secondary }}>{label}</span>
      <span style={box}>{chosen[name] === '.*' ? 'All' : chosen[name]}</span>
    </span>
  ));
  return (
    <div style={{ padding: '10px 8px 12px' }}>
      <div style={{ marginBottom: 14, display: 'flex', justifyContent: 'space-between' }}>
        <span style={{ fontSize: 16 }}>HydraMix › {board.title}</span>
        <span>
          <span style={box}><Icon name="external-link-alt" /> {board.links[0].title}</span>
          <span style={box}><Icon name="clock-nine" /> Last {minutes} minutes (UTC)</span>
          <span style={{ ...box, marginRight: 0 }}><Icon name="sync" /> {board.refresh}</span>
        </span>
      </div>
      {shown}
    </div>
  );
}

function Board({ board, chosen }: any) {
  const column = (window.innerWidth - GAP) / 24;
  const place = ({ x, y, w }: any, height: number) => ({
    position: 'absolute' as const,
    left: GAP + x * column,
    top: y * (CELL + GAP),
    width: w * column - GAP,
    height,
  });
  return (
    <>
      <Bar board={board} chosen={chosen} />
      <div style={{ position: 'relative' }}>
        {board.panels.map((panel: any) => {
          const height = panel.gridPos.h * (CELL + GAP) - GAP;
          const box = place(panel.gridPos, height);
          return (
            <div key={panel.id} style={box}>
              {panel.type === 'row' ? (
                <div style={{ lineHeight: `${CELL}px`, fontWeight: 500 }}><Icon name="angle-down" /> {panel.title}</div>
              ) : (
                <Panel panel={panel} chosen={chosen} width={box.width} height={height} />
              )}
            </div>
          );
        })}
      </div>
    </>
  );
}

const name = new URLSearchParams(location.search).get('board') ?? 'run';
const board = await (await fetch(`./dashboards/${name}.json`)).json();
const chosen = await choose(board.templating.list);
createRoot(document.getElementById('root')!).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <PanelContextProvider value={{ eventBus: new EventBusSrv(), eventsScope: '', app: '', sync: () => 0 } as any}>
      <Board board={board} chosen={chosen} />
    </PanelContextProvider>
  </ThemeContext.Provider>
);
