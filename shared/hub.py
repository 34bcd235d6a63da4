"""Upload of an artifact to the Hugging Face hub. Nothing else in this project sends anything anywhere."""

import tempfile
from pathlib import Path
from typing import Any


class PushFolder:
    """`push_to_hub` for what writes itself by `save_pretrained`, with the card that it writes.

    Transformers' own mixin puts a card of its template in the place of ours, and with it goes the notice that this is
    research software.
    """

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the folder that is uploaded."""
        raise NotImplementedError(f"{type(self).__name__} has no save_pretrained")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = True,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
    ) -> str:
        """Write the folder and upload it as one commit; returns the commit's address.

        Args:
            repo_id: ``NAME/REPOSITORY``; made if it is not there.
            private: of a new repository. Private unless told otherwise, since weights may remember patients.
            token, revision, create_pr: as in ``huggingface_hub``.
            commit_message: of the commit.
        """
        from huggingface_hub import HfApi  # here: nothing but an upload needs it

        api = HfApi(library_name="medunifier", token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "upload"
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(self).__name__}",
            )
        return str(commit.commit_url)
