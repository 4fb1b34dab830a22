"""The flags of cl and clang-cl that mean something to us; all others are kept as they stand.

After "Compiler options" of Microsoft's C++ documentation and ``clang-cl /?``. Written with ``/``; the reader takes
``-`` for it too.
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


MSVC_FLAGS: Final = FlagTable(
    (
        *_rows("/c /E /EP /P /Zs", Shape.ALONE, Category.MODE, Role.MODE),
        *_rows("/? /help", Shape.ALONE, Category.MODE, Role.MODE, canonical="/?"),
        *_rows("/link", Shape.ALONE, Category.LINKER, Role.END),
        *_rows("/Fo", Shape.JOINED, Category.OUTPUT, Role.OUTPUT),
        *_rows("/o", Shape.EITHER, Category.OUTPUT, Role.OUTPUT, canonical="/Fo"),
        *_rows("/Fe", Shape.JOINED, Category.LINKER),
        *_rows("/Tc /Tp", Shape.EITHER, Category.INPUT, Role.INPUT),
        *_rows("/TC /TP", Shape.ALONE, Category.LANGUAGE, Role.LANGUAGE_OF_ALL),
        *_rows("/I /external:I /imsvc", Shape.EITHER, Category.INCLUDE),
        *_rows("-isystem -iquote", Shape.EITHER, Category.INCLUDE),
        *_rows("/winsysroot /vctoolsdir /winsdkdir", Shape.EITHER, Category.INCLUDE),
        *_rows("/FI", Shape.EITHER, Category.FORCED_INCLUDE),
        *_rows("-include", Shape.SEPARATE, Category.FORCED_INCLUDE),
        *_rows("/D /U", Shape.EITHER, Category.DEFINE),
        *_rows("/std:", Shape.JOINED, Category.STANDARD),
        *_rows("/O", Shape.JOINED, Category.OPTIMIZE),
        *_rows("/W /w /wd /we /wo", Shape.JOINED, Category.WARNING),
        *_rows("/Z7", Shape.ALONE, Category.DEBUG),
        *_rows("/Zi /ZI", Shape.ALONE, Category.DEBUG, bypass=BypassReason.SIDE_EFFECT),
        *_rows("/d1trimfile: /PDBSourcePath: /pathmap:", Shape.JOINED, Category.PATH_MAP),
        *_rows("/experimental:deterministic /Brepro /Brepro-", Shape.ALONE, Category.FEATURE),
        *_rows("/showIncludes /showIncludes:user", Shape.ALONE, Category.DEPENDENCIES, Role.DEPENDENCY),
        *_rows("/MD /MDd /MT /MTd /LD /LDd", Shape.ALONE, Category.MACHINE),
        *_rows("/arch: /EH /G", Shape.JOINED, Category.MACHINE),
        *_rows("/nologo /FC /diagnostics:column", Shape.ALONE, Category.OTHER),
        # What writes files that are not brought back, or reads files that nobody tells of.
        *_rows("/Fa /FA /Fd /FD /Fi /Fm /FR /Fr /FS", Shape.JOINED, Category.OUTPUT, bypass=BypassReason.SIDE_EFFECT),
        *_rows("/sourceDependencies", Shape.JOINED, Category.OUTPUT, bypass=BypassReason.SIDE_EFFECT),
        *_rows("/doc /analyze /d1reportTime /Bt", Shape.JOINED, Category.OUTPUT, bypass=BypassReason.SIDE_EFFECT),
        *_rows("/MP", Shape.JOINED, Category.OTHER),
        *_rows("/AI /FU /clr", Shape.JOINED, Category.OTHER, bypass=BypassReason.FLAG),
        *_rows("/Yc /Yu /Fp /YX /Yd /Yl /Y-", Shape.JOINED, Category.OTHER, bypass=BypassReason.PRECOMPILED_HEADER),
        *_rows("/GL", Shape.ALONE, Category.FEATURE, bypass=BypassReason.FLAG),
        *_rows(
            "/interface /internalPartition /exportHeader /translateInclude",
            Shape.ALONE,
            Category.FEATURE,
            bypass=BypassReason.MODULES,
        ),
        *_rows("/ifc /headerUnit /reference", Shape.JOINED, Category.FEATURE, bypass=BypassReason.MODULES),
        *_rows("-Xclang -mllvm -target", Shape.SEPARATE, Category.PASS),
        *_rows("/clang:", Shape.JOINED, Category.PASS, bypass=BypassReason.FLAG),
        *_rows(
            "-gsplit-dwarf -ftime-trace -save-temps", Shape.JOINED, Category.FEATURE, bypass=BypassReason.SIDE_EFFECT
        ),
        *_rows(
            "--coverage -fprofile- -fcoverage- -fauto-profile",
            Shape.JOINED,
            Category.FEATURE,
            bypass=BypassReason.PROFILE,
        ),
        *_rows("-fplugin= -fpass-plugin=", Shape.JOINED, Category.FEATURE, bypass=BypassReason.PLUGIN),
        *_rows("-flto", Shape.JOINED, Category.FEATURE),
        *_rows("-fmodules -fmodule-", Shape.JOINED, Category.FEATURE, bypass=BypassReason.MODULES),
        *_rows("-### -v", Shape.ALONE, Category.MODE, bypass=BypassReason.FLAG),
        *_rows("--version", Shape.ALONE, Category.MODE, Role.MODE, canonical="/?"),
    )
)
