"""Generated from ``proto/corral/wire/v1``; never edited by hand."""
