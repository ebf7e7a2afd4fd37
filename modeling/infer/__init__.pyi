from .adapter import read_adapter as read_adapter
from .backbone import (
    attention_kernel as attention_kernel,
)
from .backbone import (
    build_backbone as build_backbone,
)
from .backbone import (
    load_backbone as load_backbone,
)
from .bundled import (
    BUNDLED_BACKBONE as BUNDLED_BACKBONE,
)
from .bundled import (
    bundled_tokenizer as bundled_tokenizer,
)
from .bundled import (
    cache_folder as cache_folder,
)
from .bundled import (
    convert_bundled_backbone as convert_bundled_backbone,
)
from .classifier import EmotionClassifier as EmotionClassifier
from .config import (
    ATTENTIONS as ATTENTIONS,
)
from .config import (
    AUTO_MAP as AUTO_MAP,
)
from .config import (
    CUSTOM_PIPELINES as CUSTOM_PIPELINES,
)
from .config import (
    INPUTS as INPUTS,
)
from .config import (
    POOLINGS as POOLINGS,
)
from .config import (
    SCHEMA_VERSION as SCHEMA_VERSION,
)
from .config import (
    WINDOWS as WINDOWS,
)
from .config import (
    EmotionConfig as EmotionConfig,
)
from .config import (
    read_config as read_config,
)
from .encoders import (
    ENCODERS as ENCODERS,
)
from .encoders import (
    LoadedEncoder as LoadedEncoder,
)
from .encoders import (
    encode_in_batches as encode_in_batches,
)
from .encoders import (
    load_encoder as load_encoder,
)
from .errors import PackageError as PackageError
from .features import (
    Features as Features,
)
from .features import (
    cut_into_windows as cut_into_windows,
)
from .features import (
    pool_windows as pool_windows,
)
from .features import (
    tokenize as tokenize,
)
from .files import read_json as read_json
from .files import unsafe_entries as unsafe_entries
from .fused import (
    FEWEST_ROWS as FEWEST_ROWS,
)
from .fused import (
    FusedOneTokenMistral as FusedOneTokenMistral,
)
from .fused import (
    fold_groups as fold_groups,
)
from .fused import (
    laid_out_linear as laid_out_linear,
)
from .fused import (
    lay_out as lay_out,
)
from .fused import (
    packs_matrices as packs_matrices,
)
from .heads import build_heads as build_heads
from .heads import build_projection as build_projection
from .model import EmotionModel as EmotionModel
from .one_token import OneTokenLayer as OneTokenLayer
from .one_token import OneTokenMistral as OneTokenMistral
from .pipeline import EmotionPipeline as EmotionPipeline
from .predict import (
    at_most as at_most,
)
from .predict import (
    predict_logits as predict_logits,
)
from .predict import (
    predict_probabilities as predict_probabilities,
)
from .predict import (
    suits_one_thread as suits_one_thread,
)
from .predict import (
    to_tensors as to_tensors,
)
from .quantization import check_quantized as check_quantized
from .weights import (
    HEAD_FILES as HEAD_FILES,
)
from .weights import (
    MAX_TOKENIZER_BYTES as MAX_TOKENIZER_BYTES,
)
from .weights import (
    TOKENIZER_FILE as TOKENIZER_FILE,
)
from .weights import (
    read_head as read_head,
)
from .weights import (
    read_head_file as read_head_file,
)
from .weights import (
    read_tokenizer as read_tokenizer,
)
from .weights import (
    refuse_large_header as refuse_large_header,
)
