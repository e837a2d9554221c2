import { defineConfig } from 'vite';

export default defineConfig({
  base: './',
  define: { 'process.env': {}, global: 'globalThis' },
  esbuild: { jsx: 'automatic' },
  build: { chunkSizeWarningLimit: 10000, sourcemap: false },
});
