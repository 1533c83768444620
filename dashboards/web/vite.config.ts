import { defineConfig } from "vitest/config";

/** `npm run dev` shows the page of the sources on the data of this server (the one `coffee-rt up` printed). */
const server = process.env.COFFEE_RT_SERVER ?? "http://127.0.0.1:8080";

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../../services/coffee_rt/fanout/page",
    emptyOutDir: true,
    // The content security policy allows no inline code and the page loads one script, so neither helps.
    modulePreload: false,
    assetsInlineLimit: 0,
    target: ["chrome123", "firefox120", "safari17.5"],
  },
  server: {
    proxy: {
      "/ws": { target: server, ws: true, changeOrigin: true },
      "/api": { target: server, changeOrigin: true },
    },
  },
  test: { include: ["src/**/*.test.ts"] },
});
