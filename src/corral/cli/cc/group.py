"""The table of `corral cc`."""

from corral.cli.lazy import Verb, lazy_app

app = lazy_app(
    {
        "stats": Verb("corral.cli.cc.stats", "Hits, misses by reason, and the time that was saved."),
        "explain": Verb("corral.cli.cc.explain", "Say what became of a source the last time, and what had changed."),
        "inspect": Verb("corral.cli.cc.inspect", "Show what is stored for a source, an object or a key."),
        "clean": Verb("corral.cli.cc.clean", "Remove stored results: all, or down to a size or an age."),
        "stop": Verb("corral.cli.cc.stop", "End this user's daemon; the next compile starts another."),
        "reload": Verb("corral.cli.cc.reload", "Make the daemon read its configuration again."),
        "install-links": Verb("corral.cli.cc.install_links", "Make links, named as the compilers, to the wrapper."),
    },
    "Cached compiles: `corral cc gcc -c a.c` compiles, and these verbs tell of it.",
)
