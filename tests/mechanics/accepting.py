"""Mechanisms of accepting orders: the append script, its limits, the connection it travels on."""

from __future__ import annotations

from tests.mechanics.mechanism import Edit, Mechanism

_APPEND = "streams/lua/append.lua"

ACCEPTING = (
    Mechanism(
        "keys-after-the-append",
        "the append script sets keys only when its XADD has succeeded",
        "a script isn't rolled back: an append that fails leaves keys of an order that was never"
        " logged, and every retry is answered with it",
        (
            Edit(
                _APPEND,
                "local fresh = unkeyed + #parts\n",
                "for i = 1, #names do\n"
                "  if type(sources[i]) == 'number' then\n"
                "    redis.call('SET', names[i],"
                " ARGV[10 + (sources[i] - 1) * 3] .. batch .. '1-1', 'PX', spans[i])\n"
                "  end\n"
                "end\n"
                "local fresh = unkeyed + #parts\n",
            ),
        ),
        ("integration/test_streams_faults.py::test_an_append_that_fails_burns_no_key",),
    ),
    Mechanism(
        "calls-are-bounded",
        "a request with many keys goes to the log in several calls",
        "Lua can't unpack some ten thousand values: the whole request fails, however often it is sent",
        (
            Edit(
                "streams/flush.py",
                "keyed_records_max: int = 200",
                "keyed_records_max: int = 20_000",
            ),
            Edit("streams/flush.py", "if not 0 < self.keyed_records_max <= 3_000:", "if False:"),
        ),
        ("mechanics/test_accepting.py::test_a_request_with_thousands_of_keys_is_taken",),
    ),
    Mechanism(
        "calls-are-short",
        "one call looks up 200 keys at most",
        "the server serves nobody for the many milliseconds that thousands of keys take",
        (
            Edit(
                "streams/flush.py", "keyed_records_max: int = 200", "keyed_records_max: int = 3_000"
            ),
        ),
        ("mechanics/test_accepting.py::test_a_request_with_thousands_of_keys_is_taken",),
    ),
    Mechanism(
        "duplicates-write-too",
        "a flush of nothing but duplicates still writes",
        "WAIT counts what its own connection wrote: after a read alone it tells of replicas that"
        " never had the order",
        (Edit(_APPEND, "redis.call('PEXPIRE', touched, touched_window)", "touched = nil"),),
        ("integration/test_streams_faults.py::test_duplicates_write_too_so_that_wait_covers_them",),
    ),
    Mechanism(
        "gap-entries",
        "the producer passes the highest counter it was answered; a log below it says so in an entry",
        "entries and counter go back together in a failover: acknowledged orders are gone and every"
        " number looks right",
        (Edit(_APPEND, "if counter < highest then", "if false then"),),
        (
            "contract/test_streams_append.py::test_a_lower_counter_puts_a_gap_entry_into_the_log",
            "contract/test_streams_append.py::test_duplicates_alone_tell_of_a_gap_too",
        ),
    ),
    Mechanism(
        "keys-expire",
        "every key is kept for its window and no longer",
        "at 88 bytes a key the log's memory fills for ever",
        (
            Edit(
                _APPEND,
                "redis.call('SET', names[i], value, 'PX', spans[i])",
                "redis.call('SET', names[i], value)",
            ),
        ),
        ("mechanics/test_accepting.py::test_every_key_is_forgotten_after_its_window",),
    ),
    Mechanism(
        "refused-by-a-moving-slot-is-resent",
        "an append that a moving slot refused is sent again, up to a limit",
        "every keyed order is refused for as long as the slot is moved key by key",
        (Edit("streams/append.py", "elif error.code in _NOT_EXECUTED and", "elif False and"),),
        ("integration/test_streams_faults.py::test_try_again_is_sent_again_and_nothing_else_is",),
    ),
    Mechanism(
        "only-the-unexecuted-is-resent",
        "no other refusal is sent again by us",
        "an append that may have happened is made twice",
        (
            Edit(
                "streams/append.py",
                '_NOT_EXECUTED = frozenset({"TRYAGAIN", "MOVED", "ASK"})',
                '_NOT_EXECUTED = frozenset({"TRYAGAIN", "MOVED", "ASK", "READONLY"})',
            ),
        ),
        ("integration/test_streams_faults.py::test_try_again_is_sent_again_and_nothing_else_is",),
    ),
    Mechanism(
        "scripts-lost-are-sent-again",
        "a script the server has forgotten goes along with the next call",
        "after a restart or SCRIPT FLUSH every order is refused",
        (Edit("streams/append.py", 'if error.code == "NOSCRIPT":', "if False:"),),
        ("integration/test_streams_faults.py::test_scripts_lost_by_the_server_are_sent_again",),
    ),
    Mechanism(
        "log-file-rewrites",
        "the embedded log rewrites its file at 512 MB",
        "at the server's default of 64 MB it does so about once a second under load, and answers wait",
        (
            Edit(
                "embedded/servers.py",
                '"auto-aof-rewrite-min-size": "512mb"',
                '"slowlog-max-len": "128"',
            ),
        ),
        (
            "integration/test_embedded_servers.py"
            "::test_valkey_writes_to_disk_before_it_answers_and_never_evicts",
        ),
    ),
)
