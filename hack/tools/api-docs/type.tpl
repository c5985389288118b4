{{- define "type" -}}
{{- $type := . -}}
{{- if markdownShouldRenderType $type }}
### {{ $type.Name }}
{{ if $type.References }}
Used in {{ range $i, $ref := $type.SortedReferences }}{{ if $i }}, {{ end }}{{ markdownRenderTypeLink $ref }}{{ end }}.
{{ end }}
{{ $type.Doc }}
{{ if $type.Members }}
| Field | Description | Default | Limits |
| --- | --- | --- | --- |
{{ if $type.GVK -}}
| `apiVersion` string | `{{ $type.GVK.Group }}/{{ $type.GVK.Version }}` | | |
| `kind` string | `{{ $type.GVK.Kind }}` | | |
{{ end -}}
{{ range $type.Members -}}
| `{{ .Name }}` {{ if eq .Type.Name "UID" }}string{{ else }}{{ markdownRenderType .Type }}{{ end }}{{ if has "Required: {}" .Validation }} **(required)**{{ end }} | {{ template "type_members" . }} | {{ with .Default }}`{{ . }}`{{ end }} | {{ template "limits" .Validation }} |
{{ end -}}
{{ end -}}
{{ if $type.EnumValues }}
| Value | Meaning |
| --- | --- |
{{ range $type.EnumValues -}}
| `{{ .Name }}` | {{ regexReplaceAll "^[A-Z][A-Za-z]+ (is )?" (.Doc | replace "\n" " " | trim) "" }} |
{{ end -}}
{{ end -}}
{{ end -}}
{{ end -}}

{{- define "limits" -}}
{{- $first := true -}}
{{- range . -}}
{{- if not (or (hasPrefix "Required:" .) (hasPrefix "Optional:" .) (hasPrefix "Type:" .) (hasPrefix "Enum:" .)) -}}
{{- if not $first }}<br />{{ end -}}{{- $first = false -}}
{{- /* Numbers arrive as 2.53402300799e+11. */ -}}
{{- $number := regexFind "[0-9.]+e[+][0-9]+$" . -}}
{{- if $number -}}
{{ regexReplaceAll "[0-9.]+e[+][0-9]+$" . (printf "%.0f" (float64 $number)) }}
{{- else -}}
{{ . | replace "|" "\\|" }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
