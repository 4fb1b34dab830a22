"""The flags of gcc and clang that mean something to us; all others are kept as they stand.

After the manuals: "Invoking GCC" (gcc.gnu.org/onlinedocs/gcc) and "Clang command line argument reference"
(clang.llvm.org/docs). A flag needs a row when its value is a word of its own, when it names a place, or when a
compile with it writes or reads what we do not carry.
"""

from typing import Final

from corral.compile.grammars.table import FlagTable, Role, Shape, Spec
from corral.compile.model import BypassReason, Category


def _rows(
    names: str,
    shape: Shape,
    category: Category,
    role: Role = Role.PLAIN,
    bypass: BypassReason | None = None,
    canonical: str = "",
) -> tuple[Spec, ...]:
    return tuple(Spec(name, shape, category, role, bypass, canonical) for name in names.split())


_MODES: Final = (
    *_rows("-c -S -E -M -MM -fsyntax-only", Shape.ALONE, Category.MODE, Role.MODE),
    *_rows("--compile", Shape.ALONE, Category.MODE, Role.MODE, canonical="-c"),
    *_rows("--assemble", Shape.ALONE, Category.MODE, Role.MODE, canonical="-S"),
    *_rows("--preprocess", Shape.ALONE, Category.MODE, Role.MODE, canonical="-E"),
    *_rows(
        "-### --version --help --target-help -dumpspecs -dumpversion -dumpfullversion -dumpmachine -print-search-dirs "
        "-print-libgcc-file-name -print-multi-lib -print-multiarch -print-sysroot -print-targets -print-resource-dir "
        "-print-effective-triple -print-runtime-dir --print-search-dirs --print-libgcc-file-name --print-multi-lib "
        "--print-sysroot --print-resource-dir --print-targets",
        Shape.ALONE,
        Category.MODE,
        Role.MODE,
        canonical="--version",
    ),
    *_rows(
        "--help= -print-file-name= -print-prog-name= --print-file-name= --print-prog-name=",
        Shape.JOINED,
        Category.MODE,
        Role.MODE,
        canonical="--version",
    ),
    *_rows("-x", Shape.EITHER, Category.LANGUAGE, Role.LANGUAGE),
    *_rows("--language=", Shape.JOINED, Category.LANGUAGE, Role.LANGUAGE, canonical="-x"),
    *_rows("-o", Shape.EITHER, Category.OUTPUT, Role.OUTPUT),
    *_rows("--output=", Shape.JOINED, Category.OUTPUT, Role.OUTPUT, canonical="-o"),
    *_rows("--output", Shape.SEPARATE, Category.OUTPUT, Role.OUTPUT, canonical="-o"),
)

_DEPENDENCIES: Final = (
    *_rows("-MD -MMD -MP -MG", Shape.ALONE, Category.DEPENDENCIES, Role.DEPENDENCY),
    *_rows("-MF -MT -MQ", Shape.EITHER, Category.DEPENDENCIES, Role.DEPENDENCY),
    *_rows("-Wp,", Shape.JOINED, Category.PASS, Role.PREPROCESSOR),
    *_rows("-Xpreprocessor", Shape.SEPARATE, Category.PASS, Role.PREPROCESSOR),
)

_PLACES: Final = (
    *_rows("-I -isystem -iquote -idirafter -cxx-isystem -F -iframework", Shape.EITHER, Category.INCLUDE),
    *_rows("--include-directory=", Shape.JOINED, Category.INCLUDE, canonical="-I"),
    *_rows("--include-directory", Shape.SEPARATE, Category.INCLUDE, canonical="-I"),
    *_rows("--include-directory-after=", Shape.JOINED, Category.INCLUDE, canonical="-idirafter"),
    *_rows("-isysroot -iwithsysroot -iprefix -iwithprefix -iwithprefixbefore", Shape.EITHER, Category.INCLUDE),
    *_rows("-imultilib -resource-dir", Shape.SEPARATE, Category.INCLUDE),
    *_rows("--sysroot= --gcc-toolchain= -resource-dir=", Shape.JOINED, Category.INCLUDE),
    *_rows("--sysroot", Shape.SEPARATE, Category.INCLUDE, canonical="--sysroot="),
    *_rows("-I-", Shape.ALONE, Category.INCLUDE),
    *_rows("-nostdinc -nostdinc++ -nobuiltininc -nostdlibinc", Shape.ALONE, Category.INCLUDE),
    *_rows("-include -imacros", Shape.EITHER, Category.FORCED_INCLUDE),
    *_rows("--include=", Shape.JOINED, Category.FORCED_INCLUDE, canonical="-include"),
    *_rows("--include", Shape.SEPARATE, Category.FORCED_INCLUDE, canonical="-include"),
    *_rows("-ffile-prefix-map= -fdebug-prefix-map= -fmacro-prefix-map=", Shape.JOINED, Category.PATH_MAP),
    *_rows("-fdebug-compilation-dir= -ffile-compilation-dir=", Shape.JOINED, Category.PATH_MAP),
    *_rows("-fdebug-compilation-dir", Shape.SEPARATE, Category.PATH_MAP, canonical="-fdebug-compilation-dir="),
    *_rows("-fprofile-prefix-map= -fcoverage-prefix-map=", Shape.JOINED, Category.PATH_MAP),
    *_rows("-B", Shape.EITHER, Category.INCLUDE),
    *_rows("-specs= --specs=", Shape.JOINED, Category.INCLUDE, canonical="-specs="),
    *_rows("-specs --specs", Shape.SEPARATE, Category.INCLUDE, canonical="-specs="),
    *_rows(
        "-fsanitize-blacklist= -fsanitize-ignorelist= -fsanitize-coverage-allowlist= -fsanitize-coverage-ignorelist=",
        Shape.JOINED,
        Category.INCLUDE,
    ),
)

_MEANINGS: Final = (
    *_rows("-D -U", Shape.EITHER, Category.DEFINE),
    *_rows("--define-macro=", Shape.JOINED, Category.DEFINE, canonical="-D"),
    *_rows("--define-macro", Shape.SEPARATE, Category.DEFINE, canonical="-D"),
    *_rows("--undefine-macro=", Shape.JOINED, Category.DEFINE, canonical="-U"),
    *_rows("--undefine-macro", Shape.SEPARATE, Category.DEFINE, canonical="-U"),
    *_rows("-A", Shape.EITHER, Category.DEFINE),
    *_rows("-std= --std=", Shape.JOINED, Category.STANDARD, canonical="-std="),
    *_rows("-ansi", Shape.ALONE, Category.STANDARD),
    *_rows("-O", Shape.JOINED, Category.OPTIMIZE),
    *_rows("-g", Shape.JOINED, Category.DEBUG),
    *_rows("-W", Shape.JOINED, Category.WARNING),
    *_rows("-w -pedantic -pedantic-errors", Shape.ALONE, Category.WARNING),
    *_rows("-f", Shape.JOINED, Category.FEATURE),
    *_rows("-m", Shape.JOINED, Category.MACHINE),
    *_rows("-mllvm -target", Shape.SEPARATE, Category.MACHINE),
    *_rows("--target=", Shape.JOINED, Category.MACHINE, canonical="-target"),
    *_rows("--param", Shape.SEPARATE, Category.OPTIMIZE),
    *_rows("--param=", Shape.JOINED, Category.OPTIMIZE, canonical="--param"),
    *_rows("-G -imultiarch -stdlib", Shape.SEPARATE, Category.OTHER),
    *_rows("-pipe -pass-exit-codes", Shape.ALONE, Category.OTHER),
)

_LINKER: Final = (
    *_rows("-l -L -T -u -z -e", Shape.EITHER, Category.LINKER),
    *_rows("-Wl,", Shape.JOINED, Category.LINKER),
    *_rows(
        "-Xlinker --for-linker -Tbss -Tdata -Ttext -install_name -dylib_install_name -undefined -bundle_loader "
        "-framework -rpath -dynamic-linker",
        Shape.SEPARATE,
        Category.LINKER,
    ),
    *_rows(
        "-shared -static -static-pie -static-libgcc -static-libstdc++ -rdynamic -pie -no-pie -s -nostdlib "
        "-nostartfiles -nodefaultlibs -nolibc -symbolic -r",
        Shape.ALONE,
        Category.LINKER,
    ),
)

# What writes files that are not brought back, or reads files that nobody tells of.
_SIDE_EFFECTS: Final = (
    *_rows(
        "-save-temps --save-temps -save-stats --save-stats",
        Shape.ALONE,
        Category.OUTPUT,
        bypass=BypassReason.SIDE_EFFECT,
    ),
    *_rows(
        "-save-temps= --save-temps= -save-stats= --save-stats=",
        Shape.JOINED,
        Category.OUTPUT,
        bypass=BypassReason.SIDE_EFFECT,
    ),
    *_rows(
        "-fdump- -fcallgraph-info -fstack-usage -fdiagnostics-format= -fsave-optimization-record "
        "-foptimization-record- -fopt-info -ftime-trace -ftime-report -fmem-report -fproc-stat-report -fcompare-debug "
        "-fdiagnostics-add-output= -fdiagnostics-set-output= -fcrash-diagnostics-dir= -fdump-go-spec= -gsplit-dwarf "
        "-fanalyzer-dump -fsched-verbose -fbasic-block-sections=list= -fthinlto-index=",
        Shape.JOINED,
        Category.FEATURE,
        bypass=BypassReason.SIDE_EFFECT,
    ),
    *_rows(
        "-aux-info -dumpdir -dumpbase -dumpbase-ext -MJ --serialize-diagnostics -serialize-diagnostics "
        "-index-store-path -wrapper -ivfsoverlay -working-directory --config -gen-cdb-fragment-path",
        Shape.SEPARATE,
        Category.OUTPUT,
        bypass=BypassReason.SIDE_EFFECT,
    ),
    *_rows(
        "-d -aux-info= -working-directory= -time= --config= --config-system-dir= --config-user-dir=",
        Shape.JOINED,
        Category.OUTPUT,
        bypass=BypassReason.SIDE_EFFECT,
    ),
    *_rows(
        "-fdiagnostics-format=text -fdiagnostics-format=json -fdiagnostics-format=json-stderr "
        "-fdiagnostics-format=sarif-stderr -fdiagnostics-format=clang -fdiagnostics-format=msvc "
        "-fdiagnostics-format=vi",
        Shape.ALONE,
        Category.FEATURE,
    ),
    *_rows("-v -Q -time -H -P -C -CC -fdirectives-only", Shape.ALONE, Category.OTHER, bypass=BypassReason.FLAG),
    *_rows("-trigraphs -fpch-deps -fworking-directory -fno-working-directory -remap", Shape.ALONE, Category.OTHER),
    *_rows(
        "--coverage -coverage -fprofile-arcs -ftest-coverage -p -pg -fprofile-generate -fprofile-instr-generate "
        "-fprofile-use -fprofile-instr-use -fauto-profile -fcoverage-mapping -fcs-profile-generate",
        Shape.ALONE,
        Category.FEATURE,
        bypass=BypassReason.PROFILE,
    ),
    *_rows(
        "-fprofile-generate= -fprofile-instr-generate= -fprofile-use= -fprofile-instr-use= -fprofile-sample-use= "
        "-fprofile-list= -fprofile-dir= -fprofile-note= -fprofile-filter-files= -fprofile-exclude-files= "
        "-fauto-profile= -fcs-profile-generate= -fprofile-remapping-file= -fxray-",
        Shape.JOINED,
        Category.FEATURE,
        bypass=BypassReason.PROFILE,
    ),
    *_rows("-fplugin= -fpass-plugin= -fplugin-arg-", Shape.JOINED, Category.FEATURE, bypass=BypassReason.PLUGIN),
    *_rows(
        "-fmodules -fmodules-ts -fcxx-modules -fmodule-header -fmodule-only -fmodule-lazy",
        Shape.ALONE,
        Category.FEATURE,
        bypass=BypassReason.MODULES,
    ),
    *_rows(
        "-fmodule- -fmodules- -fprebuilt-module-path= -fimplicit-modules -fimplicit-module-maps -fbuild-session-",
        Shape.JOINED,
        Category.FEATURE,
        bypass=BypassReason.MODULES,
    ),
    *_rows("--precompile -emit-pch", Shape.ALONE, Category.MODE, bypass=BypassReason.MODULES),
    *_rows("-include-pch", Shape.SEPARATE, Category.OTHER, bypass=BypassReason.PRECOMPILED_HEADER),
    *_rows("-fpch-preprocess", Shape.ALONE, Category.OTHER, bypass=BypassReason.PRECOMPILED_HEADER),
    *_rows("-emit-llvm -emit-ast -emit-interface-stubs", Shape.ALONE, Category.MODE),
    *_rows("-Wa,", Shape.JOINED, Category.PASS),
    *_rows("-Xassembler -Xclang", Shape.SEPARATE, Category.PASS),
    *_rows(
        "-Xarch_host -Xarch_device -Xopenmp-target -Xcuda-ptxas -Xcuda-fatbinary -Xanalyzer -arch -offload-arch",
        Shape.SEPARATE,
        Category.PASS,
        bypass=BypassReason.FLAG,
    ),
    *_rows(
        "-frecord-gcc-switches -frecord-command-line -grecord-command-line",
        Shape.ALONE,
        Category.OTHER,
        bypass=BypassReason.FLAG,
    ),
    *_rows("-Xarch_ --cuda- --offload- --analyze", Shape.JOINED, Category.PASS, bypass=BypassReason.FLAG),
    *_rows("-no-canonical-prefixes -canonical-prefixes -no-integrated-cpp", Shape.ALONE, Category.OTHER),
    *_rows(
        "--dependencies --user-dependencies --write-dependencies --write-user-dependencies --verbose --trace-includes "
        "--profile --time --include-barrier",
        Shape.ALONE,
        Category.OTHER,
        bypass=BypassReason.FLAG,
    ),
    *_rows(
        "--assert --dumpbase --dumpdir --encoding --force-link --for-assembler --include-prefix --include-with-prefix "
        "--include-with-prefix-after --include-with-prefix-before --language --library-directory --prefix",
        Shape.SEPARATE,
        Category.OTHER,
        bypass=BypassReason.FLAG,
    ),
)

GNU_FLAGS: Final = FlagTable((*_MODES, *_DEPENDENCIES, *_PLACES, *_MEANINGS, *_LINKER, *_SIDE_EFFECTS))
