/* The numbers of the agent protocol: the single truth. The Python side (sandboxes/link/protocol.py) is tested
 * against this file; docs/reference/agent-protocol.md explains it. Only integer macros with decimal values here.
 *
 * A frame: u32 payload length, u32 stream, u8 type, payload; everything little endian. Stream 0 is the link itself.
 * A string: u32 length with its closing NUL, then the bytes with that NUL. A blob: u32 length, bytes. */
#ifndef CORRAL_PROTOCOL_H
#define CORRAL_PROTOCOL_H

#define PROTOCOL_VERSION 1

#define FRAME_HEADER_BYTES 9
#define FRAME_PAYLOAD_MAX 2097152 /* of a SETUP or EXEC; about what execve(2) takes */
#define DATA_BYTES_MAX 65536      /* of one frame of STDIN, STDOUT, STDERR, DATA */
#define WINDOW_BYTES 262144       /* credit that a stream has in each direction when it opens */
#define STREAMS_MAX 1024          /* open at once; more are refused, not queued */
#define PATH_BYTES_MAX 4096
#define DEPTH_MAX 128
#define RESEED_BYTES_MAX 512      /* of entropy in one RESEED */
#define SIZE_UNKNOWN 18446744073709551615U /* of a file in PUT: its data ends at the next ENTRY or PUT_END */
#define GRACE_DEFAULT 4294967295 /* in KILL: the grace that SETUP named */

/* host to agent */
#define T_SETUP 1
#define T_PING 2
#define T_RESET 3
#define T_RESEED 4
#define T_EXEC 10
#define T_STDIN 11
#define T_STDIN_END 12
#define T_SIGNAL 13
#define T_KILL 14
#define T_WINDOW 15
#define T_CREDIT 16 /* both directions */
#define T_PUT 20
#define T_PUT_END 21
#define T_GET 22
#define T_STAT 23
#define T_SPACE 24
#define T_ABANDON 25
#define T_ENTRY 26 /* both directions */
#define T_DATA 27  /* both directions */

/* agent to host */
#define T_READY 64
#define T_SETUP_FAILED 65
#define T_PONG 66
#define T_RESET_DONE 67
#define T_RESEEDED 68
#define T_STARTED 70
#define T_NOT_STARTED 71
#define T_STDOUT 72
#define T_STDERR 73
#define T_EXIT 74
#define T_DONE 80
#define T_FILE_ERROR 81
#define T_SPACE_IS 82

/* flags of SETUP */
#define SETUP_DROP_CAPABILITIES 1
#define SETUP_FORBID_USER_NAMESPACES 2

/* flags of READY */
#define READY_IS_INIT 1

/* flags of EXEC */
#define EXEC_STDIN 1
#define EXEC_TERMINAL 2
#define EXEC_USER 4
#define EXEC_MERGE 8 /* stdout and stderr are one pipe: their order is the command's own */
#define EXEC_RESET 16 /* nobody needs what it leaves: an end without trouble is followed by a RESET at once */

/* how an exec ended, in EXIT */
#define EXIT_STATUS 0
#define EXIT_SIGNAL 1

/* flags of EXIT */
#define EXIT_LEFT_PROCESSES 1 /* descendants outlived the command and were killed */
#define EXIT_KILLED 2         /* a KILL was carried out */
#define EXIT_SURVIVORS 4      /* some could not be killed within the patience */
#define EXIT_KEEPER_LOST 8    /* somebody killed the keeper: usage and status are unknown */
#define EXIT_OUT_OF_MEMORY 16 /* the sandbox's memory was used up meanwhile; told only where the agent can know */
#define EXIT_PROCESS_LIMIT 32 /* the sandbox had all its processes meanwhile; likewise */
#define EXIT_RESET 64         /* the sandbox is as good as new already, as EXEC wished */

/* kinds of ENTRY */
#define ENTRY_FILE 0
#define ENTRY_DIRECTORY 1
#define ENTRY_SYMLINK 2

/* flags of PUT */
#define PUT_MAKE_BASE 1

/* codes of FILE_ERROR */
#define FILE_NOT_FOUND 1
#define FILE_REFUSED 2   /* a path, a kind or a parent that is never accepted */
#define FILE_TOO_LARGE 3 /* a limit of the request */
#define FILE_NO_SPACE 4
#define FILE_DENIED 5
#define FILE_FAILED 6

#endif
