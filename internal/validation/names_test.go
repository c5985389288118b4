package validation

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 129)
	for name, is := range map[string]struct {
		legal   func(string) bool
		longest int
		marks   bool
	}{
		"product ID":  {ProductID, 32, false},
		"device name": {DeviceName, 48, true},
		"topic name":  {TopicName, 128, true},
	} {
		for text, want := range map[string]bool{
			"": false, "a": true, "AZaz09": true, "a:b_c-": is.marks, "a/b": false, "+": false, "#": false, "$a": false, "é": false,
			"а": false, "a b": false, "a\n": false, "a\x00": false, "\xff": false,
			long[:is.longest]: true, long[:is.longest+1]: false,
		} {
			if got := is.legal(text); got != want {
				t.Errorf("%q is a %s: %v, want %v", text, name, got, want)
			}
		}
	}
}
