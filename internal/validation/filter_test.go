package validation_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/testobj"
	"batchtask.dev/operator/internal/validation"
)

func TestFilter(t *testing.T) {
	for _, tc := range []struct {
		name, pattern string
		want          []string // errors
	}{
		{name: "anchored at the end", pattern: `door$`},
		{name: "anchored at the start", pattern: `^door`},
		{name: "all", pattern: `.*`},
		{name: "in the middle, not anchored", pattern: `oo`},
		{name: "Unicode", pattern: `^门-\p{Han}+$`},
		{name: "alternatives", pattern: `door|window`},
		{name: "a named group", pattern: `(?<floor>\d+)`},
		{name: "a flag", pattern: `(?i)DOOR`},
		{name: "the longest, in characters", pattern: strings.Repeat("门", 1024)},

		{name: "empty", pattern: "", want: []string{
			`spec.deviceNameFilter: Required value: must not be empty; ".*" matches all devices`,
		}},
		{name: "not closed", pattern: "(", want: []string{
			`spec.deviceNameFilter: Invalid value: "(": is not a regular expression in RE2 syntax: missing closing ): ` + "`(`",
		}},
		{name: "look-ahead", pattern: "(?=x)", want: []string{
			`spec.deviceNameFilter: Invalid value: "(?=x)": is not a regular expression in RE2 syntax: invalid or unsupported Perl syntax (RE2 has no look-ahead): ` + "`(?=` at character 1",
		}},
		{name: "negative look-ahead", pattern: "door(?!x)", want: []string{
			`spec.deviceNameFilter: Invalid value: "door(?!x)": is not a regular expression in RE2 syntax: invalid or unsupported Perl syntax (RE2 has no look-ahead): ` + "`(?!` at character 5",
		}},
		{name: "look-behind", pattern: "(?<=x)", want: []string{
			`spec.deviceNameFilter: Invalid value: "(?<=x)": is not a regular expression in RE2 syntax: invalid named capture (RE2 has no look-behind): ` + "`(?<=x)`",
		}},
		{name: "negative look-behind", pattern: "(?<!x)", want: []string{
			`spec.deviceNameFilter: Invalid value: "(?<!x)": is not a regular expression in RE2 syntax: invalid named capture (RE2 has no look-behind): ` + "`(?<!x)`",
		}},
		{name: "look-behind further on", pattern: "门门(?<!x)y", want: []string{
			`spec.deviceNameFilter: Invalid value: "门门(?<!x)y": is not a regular expression in RE2 syntax: invalid named capture (RE2 has no look-behind): ` + "`(?<!x)y` at character 3",
		}},
		{name: "a back-reference", pattern: `(a)\1`, want: []string{
			`spec.deviceNameFilter: Invalid value: "(a)\\1": is not a regular expression in RE2 syntax: invalid escape sequence (RE2 has no back-references): ` + "`\\1` at character 4",
		}},
		{name: "a back-reference alone", pattern: `\1`, want: []string{
			`spec.deviceNameFilter: Invalid value: "\\1": is not a regular expression in RE2 syntax: invalid escape sequence (RE2 has no back-references): ` + "`\\1`",
		}},
		{name: "an atomic group", pattern: `a(?>b)`, want: []string{
			`spec.deviceNameFilter: Invalid value: "a(?>b)": is not a regular expression in RE2 syntax: invalid or unsupported Perl syntax (RE2 has no atomic groups): ` + "`(?>` at character 2",
		}},
		{name: "nothing to repeat", pattern: `门*+`, want: []string{
			`spec.deviceNameFilter: Invalid value: "门*+": is not a regular expression in RE2 syntax: invalid nested repetition operator: ` + "`*+` at character 2",
		}},
		{name: "too long", pattern: strings.Repeat("a", 1025), want: []string{
			`spec.deviceNameFilter: Too long: may not be more than 1024 characters`,
		}},
		{name: "too large when compiled", pattern: "((a{1000}){1000}){1000}", want: []string{
			`spec.deviceNameFilter: Invalid value: "((a{1000}){1000}){1000}": is not a regular expression in RE2 syntax: invalid repeat count: ` + "`{1000}` at character 4",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			task := testobj.BatchTask("a").Publish("event", "close").Filter(tc.pattern).Obj()
			if diff := cmp.Diff(tc.want, messages(validation.Spec(&task.Spec))); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}
