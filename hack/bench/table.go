package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// unitRatio is of figures that compare ratios.
const unitRatio = "ratio"

// show writes a line for each figure, and why something is missing where it is.
func show(w io.Writer, figures []figure) {
	const line = "%-86s %12s  %-12s %12s  %7s  %-13s  %s\n"
	fmt.Fprintf(w, "\n"+line, "case", "measured", "unit", "limit", "ratio", "aim", "verdict")
	for _, f := range figures {
		decimals := 1
		if f.Unit == unitRatio {
			decimals = 2
		}
		value := number(f.Value, decimals)
		if f.Value == 0 && f.NotMeasured == "" {
			value = "0" // a difference
		}
		aim, verdict := "-", string(f.verdict())
		if f.Aim != nil {
			aim = f.Aim.String()
		}
		if f.NotMeasured != "" {
			verdict += " (" + f.NotMeasured + ")"
		}
		fmt.Fprintf(w, line, f.Case, value, f.Unit, number(f.Limit, decimals), number(f.Ratio, 2), aim, verdict)
	}
}

// number writes 0 as nothing.
func number(value float64, decimals int) string {
	if value == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", decimals, value)
}

func save(path string, figures []figure) error {
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}
