"""The contract of action caches; subclass it with a ``cache`` over a ``blobs`` that it shares."""

import asyncio

from corral.actions.adapters.messages import write_result, write_tree
from corral.actions.building import TreeBuilder
from corral.actions.errors import MissingBlobs
from corral.actions.model import ActionResult, OutputDirectory, OutputFile, StoredResult
from corral.actions.ports import ActionCache
from corral.blobs.content import write_bytes
from corral.blobs.ports import BlobStore
from corral.kernel.digest import Digest, HashFunction
from corral.kernel.errors import InvalidSpec

SHA: HashFunction = HashFunction.SHA256
ACTION: Digest = Digest.of(b"an action that was never stored", SHA)


async def stored_file(blobs: BlobStore, content: bytes, tenant: str = "ann") -> OutputFile:
    """An output whose content is stored."""
    return OutputFile(content.decode(), await write_bytes(blobs, tenant, content, function=SHA))


def result_of(*files: OutputFile, execution: str = "", **more: object) -> StoredResult:
    """A result that names ``files``."""
    result = ActionResult(files=files, **more)  # type: ignore[arg-type]
    return StoredResult(encoded=write_result(result), stored_s=12.5, execution=execution)


class ActionCacheContract:
    """What every action cache does; ``blobs`` must hold what results name."""

    async def test_what_was_stored_is_found_byte_for_byte(self, cache: ActionCache, blobs: BlobStore) -> None:
        output = await stored_file(blobs, b"out")
        result = result_of(output, execution="task_1", stdout=b"said", exit_code=0)

        await cache.update("ann", ACTION, result)
        found = await cache.get("ann", ACTION)

        assert found is not None
        assert (found.encoded, found.execution, found.stored_s) == (result.encoded, "task_1", 12.5)
        assert found.named == (output.digest,)

    async def test_nothing_is_found_that_was_not_stored(self, cache: ActionCache, blobs: BlobStore) -> None:
        await cache.update("ann", ACTION, result_of(await stored_file(blobs, b"out")))

        assert await cache.get("bob", ACTION) is None
        assert await cache.get("ann", Digest.of(b"other", SHA)) is None
        assert await cache.get("ann", Digest(HashFunction.BLAKE3, ACTION.hash, ACTION.size_bytes)) is None

    async def test_the_last_of_two_results_stands(self, cache: ActionCache, blobs: BlobStore) -> None:
        first, second = [result_of(await stored_file(blobs, content)) for content in (b"one", b"two")]
        await cache.update("ann", ACTION, first)
        assert await cache.get("ann", ACTION) is not None

        await cache.update("ann", ACTION, second)

        found = await cache.get("ann", ACTION)
        assert found is not None
        assert found.encoded == second.encoded

    async def test_a_removed_result_is_gone_and_removing_it_again_is_no_error(
        self, cache: ActionCache, blobs: BlobStore
    ) -> None:
        await cache.update("ann", ACTION, result_of(await stored_file(blobs, b"out")))
        assert await cache.get("ann", ACTION) is not None

        await cache.remove("ann", ACTION)
        await cache.remove("ann", ACTION)

        assert await cache.get("ann", ACTION) is None

    async def test_a_result_that_names_what_is_not_stored_is_refused(
        self, cache: ActionCache, blobs: BlobStore
    ) -> None:
        present = await stored_file(blobs, b"present")
        absent = OutputFile("absent", Digest.of(b"absent", SHA))

        error = await _refusal(cache, result_of(present, absent))

        assert isinstance(error, MissingBlobs)
        assert error.digests == (absent.digest,)
        assert await cache.get("ann", ACTION) is None

    async def test_what_another_tenant_stored_does_not_count(self, cache: ActionCache, blobs: BlobStore) -> None:
        bobs = await stored_file(blobs, b"bob's", "bob")

        assert isinstance(await _refusal(cache, result_of(bobs)), MissingBlobs)

    async def test_only_success_is_kept(self, cache: ActionCache) -> None:
        assert isinstance(await _refusal(cache, result_of(exit_code=1)), InvalidSpec)
        assert await cache.get("ann", ACTION) is None

    async def test_bytes_that_are_no_result_are_refused(self, cache: ActionCache) -> None:
        assert isinstance(await _refusal(cache, StoredResult(encoded=b"\xff\xff\xff")), InvalidSpec)

    async def test_what_lies_in_a_tree_counts_as_named(self, cache: ActionCache, blobs: BlobStore) -> None:
        inside, absent = (await stored_file(blobs, b"inside")).digest, Digest.of(b"absent", SHA)
        whole, broken = [await _tree(blobs, {"a/b": inside}), await _tree(blobs, {"a/b": inside, "c": absent})]
        directory = [OutputDirectory("d", tree) for tree in (whole, broken)]

        await cache.update("ann", ACTION, _with_directory(directory[0]))
        found = await cache.get("ann", ACTION)
        error = await _refusal(cache, _with_directory(directory[1]))

        assert found is not None
        assert set(found.named) == {whole, inside}
        assert isinstance(error, MissingBlobs)
        assert error.digests == (absent,)

    async def test_the_empty_file_need_not_be_stored(self, cache: ActionCache) -> None:
        await cache.update("ann", ACTION, result_of(OutputFile("empty", Digest.of(b"", SHA))))

        assert await cache.get("ann", ACTION) is not None

    async def test_many_at_once_leave_one_whole_result(self, cache: ActionCache, blobs: BlobStore) -> None:
        results = [result_of(await stored_file(blobs, f"file {n}".encode())) for n in range(10)]

        async with asyncio.TaskGroup() as group:
            for result in results:
                group.create_task(cache.update("ann", ACTION, result))

        found = await cache.get("ann", ACTION)
        assert found is not None
        assert found.encoded in {result.encoded for result in results}


async def _refusal(cache: ActionCache, result: StoredResult) -> Exception | None:
    try:
        await cache.update("ann", ACTION, result)
    except (InvalidSpec, MissingBlobs) as error:
        return error
    return None


async def _tree(blobs: BlobStore, files: dict[str, Digest]) -> Digest:
    builder = TreeBuilder(SHA)
    for path, digest in files.items():
        builder.add_file(path, digest)
    built = builder.build()
    return await write_bytes(blobs, "ann", write_tree(built.top, built.below), function=SHA)


def _with_directory(directory: OutputDirectory) -> StoredResult:
    return StoredResult(encoded=write_result(ActionResult(directories=(directory,))))
