"""EAGLE-3 heads as drafts: `config` and `weights` read them, `head` computes, `model` and `passes`
run it over caches and trees, `loading` puts a drafter together."""
