"""How PostgreSQL does it: links, group commit, the LISTEN link, locks. SQL stands only in this folder."""
