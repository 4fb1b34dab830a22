"""Cached compiles: read a compiler's command line, name what it depends on, answer from a store or run it.

``model`` nouns; pure: ``grammars`` (command lines), ``cacheability`` (what may be cached), ``closure`` (what a compile
read), ``key`` (its name); ``service`` is the daemon's side, ``store`` the disk, ``ports`` the way to workers.

What the service asks of the pure half, in the order of one request::

    key.relevant_environment(environment) -> dict[str, str]           the variables that can change the bytes
    grammars.parse(argv, read_file=...) -> Invocation | Bypass        read_file(path as named) -> bytes | None
    cacheability.judge(invocation, environment) -> Cacheable | Bypass
    key.key_inputs(invocation, cacheable, identity=..., environment=..., cwd=..., root=...) -> KeyInputs
    key.request_key(inputs) -> str                                    64 hex digits
    closure.traits(content) -> FileTraits
    closure.refusal(cacheable, traits of every file) -> Bypass | None  time macros, embedded files
    closure.parse_dependencies(text) -> tuple[str, ...]               prerequisites, unescaped, each once, in order
    closure.absent(invocation, files=..., cwd=..., root=...) -> tuple[str, ...]   see IncludeSet.absent
    closure.store_dependencies(content, root=...) -> bytes            the rules with the root replaced by a mark
    closure.replay_dependencies(content, root=...) -> bytes           … and back, for another checkout
    key.result_key(request_key, include_set) -> str                   64 hex digits
    paths.relative(path, cwd=..., root=...) -> str   paths.absolute(path, root=...) -> str   project-relative and back
"""
