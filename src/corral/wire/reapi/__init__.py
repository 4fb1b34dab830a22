"""Generated from ``proto/corral/wire/reapi``; never edited by hand."""
