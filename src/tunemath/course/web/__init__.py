"""The course in the browser: a page that is served on this machine only."""
