"""Upload an artifact to the Hugging Face hub. Nothing else in this project sends data anywhere."""

import tempfile
from pathlib import Path
from typing import Any


class PushFolder:
    """Mixin: `push_to_hub` for classes with `save_pretrained`, keeping the model card that it writes.

    The mixin of transformers replaces the card by its template, and with it the research-only notice.
    """

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the folder to upload."""
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
        """Write the folder, upload it as one commit and return the commit's URL.

        Args:
            repo_id: ``NAME/REPOSITORY``; created if absent.
            private: visibility of a new repository. Private by default, since weights may memorise patients.
            token, revision, create_pr: as in ``huggingface_hub``.
            commit_message: by default the class name.
        """
        from huggingface_hub import HfApi  # lazy: only uploads need it

        api = HfApi(library_name="medunifier", token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "upload"
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(self).__name__}",
            )
        return str(commit.commit_url)
