#!/bin/sh
# The command `corral`. A compile (`corral cc gcc …`) goes to the static wrapper beside this file, without any Python.
here=${0%/*}
[ -x "$here/python3" ] || here=$(dirname "$(readlink -f "$0")")
if [ "${1-}" = cc ] && [ -x "$here/corral-cc" ]; then
  case ${2-} in
    "" | -* | stats | explain | inspect | clean | stop | reload | install-links) ;;
    *) shift; exec "$here/corral-cc" "$@" ;;
  esac
fi
[ -x "$here/python3" ] && exec "$here/python3" -P -m corral "$@"
if [ -L "$here/python3" ]; then # the environment's, which is gone or of somebody else
  echo "corral: error: $here/python3 cannot be run; install Corral again" >&2
  exit 1
fi
exec python3 -P -m corral "$@"
