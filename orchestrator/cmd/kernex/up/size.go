package up

import "github.com/kernexhq/kernex/pkg/config"

// Size is a number of bytes that a person writes as 512MiB or 2GiB.
type Size = config.Size
