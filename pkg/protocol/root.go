package protocol

import (
	"strings"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// CheckRoot refuses a topic prefix that cannot be one: every topic carries it,
// and none of its levels may be empty or a wildcard.
func CheckRoot(root string) error {
	if len(root) > 128 || strings.HasPrefix(root, "$") || strings.ContainsAny(root, "+#\x00 ") || strings.Contains("/"+root+"/", "//") {
		return fleet.Errorf(fleet.CodeInvalid, "topic root %.128q: use levels without wildcards and blanks, such as %s", root, DefaultRoot)
	}
	return nil
}
