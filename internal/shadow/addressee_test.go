package shadow

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A message that is too large is answered with its type and token, wherever in it they
// stand, as one is that is wrong in another way.
func TestAddresseeOfLargeMessages(t *testing.T) {
	big := `"` + strings.Repeat("x", 33_000) + `"`
	nested := strings.Repeat(`{"a":[`, 10_000) + `"}]\"` + `"` + strings.Repeat(`]}`, 10_000)
	for name, tt := range map[string]struct{ text, wantType, wantToken string }{
		"at the start":          {`{"type":"update","clientToken":"big","state":{"reported":{"a":` + big + `}}}`, "update", `"big"`},
		"at the end":            {`{"state":{"reported":{"a":` + big + `}}, "clientToken" : 12.50 ,"type": "get"}`, "get", `12.50`},
		"behind deep nesting":   {`{"clientToken":"first","x":` + nested + `,"clientToken":"t","type":"get"}`, "get", `"t"`},
		"cut off":               {`{"type":"get","clientToken":"t","x":` + big[:33_000], "get", `"t"`},
		"escapes":               {`{"x":"` + strings.Repeat(`\"`, 17_000) + `\\","type":"g\u0065t","clientToken":"\"t\\"}`, "get", `"\"t\\"`},
		"white space":           {strings.Repeat(" ", 33_000) + "{\n\"type\"\t:\r\"get\"\n,\"clientToken\":-1\n}", "get", `-1`},
		"inside another object": {`{"x":{"type":"get","clientToken":"t"},"y":` + big + `}`, "", ""},
		"of other kinds":        {`{"type":"delta","clientToken":["t"],"y":` + big + `}`, "", ""},
		"no JSON value":         {`{"type":"get","clientToken":0x1,"y":` + big + `}`, "get", ""},
		"invalid UTF-8":         {`{"clientToken":"` + "\xff" + `","type":"get","y":` + big + `}`, "get", ""},
		"a huge token":          {`{"type":"get","clientToken":` + big + `}`, "get", ""},
		"beyond the bound":      {`{"x":"` + strings.Repeat("x", maxAddresseeBytes) + `","type":"get","clientToken":"t"}`, "", ""},
		"an array":              {`[` + big + `]`, "", ""},
		"binary":                {strings.Repeat("\x00", 40_000), "", ""},
		"one backslash":         {`{"x":"` + strings.Repeat(`x`, 40_000) + `\`, "", ""},
		"one brace":             {strings.Repeat(" ", 40_000) + `{`, "", ""},
	} {
		got, err := ParseMessage([]byte(tt.text))
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: error %v, want ErrTooLarge", name, err)
		}
		if got.Type != tt.wantType || string(got.ClientToken) != tt.wantToken {
			t.Errorf("%s: type %q, token %s, want %q and %s", name, got.Type, got.ClientToken, tt.wantType, tt.wantToken)
		}
	}
}

// What is read of a message does not depend on whether it is too large.
func FuzzAddressee(f *testing.F) {
	for _, seed := range []string{`{"type":"get","clientToken":"t"}`, `{"clientToken":1e5,"x":[{"type":"y"}],"type":"update"}`, `{"a":"\\","clientToken":null}`, `{"type":"get" , "type":"update"}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > maxTokenBytes {
			return
		}
		got := addresseeOfLarge([]byte(text)) // must end, and not panic, whatever it is
		want := addressee(text)
		if strings.Contains(text, `\`) || want.Type == "" && want.ClientToken == nil {
			return // a key may be written with escapes; and of what is no JSON the one reads less
		}
		if got.Type != want.Type || string(got.ClientToken) != string(want.ClientToken) {
			t.Errorf("%s: type %q, token %s, want %q and %s", text, got.Type, got.ClientToken, want.Type, want.ClientToken)
		}
	})
}

// A message costs the same to refuse, whatever is in it.
func TestAddresseeIsCheap(t *testing.T) {
	for _, text := range []string{strings.Repeat(`{"a":`, 1<<20), `{` + strings.Repeat(`"type":"get",`, 1<<20), `{"` + strings.Repeat(`\"`, 1<<22)} {
		started := time.Now()
		addresseeOfLarge([]byte(text))
		if took := time.Since(started); took > 5*time.Second {
			t.Errorf("%.20s…: %v", text, took)
		}
	}
}
