{{- define "type_members" -}}
{{- if eq .Type.Name "ObjectMeta" -}}
The metadata of every Kubernetes object.
{{- else -}}
{{ .Doc | replace "|" "\\|" | replace "\n\n" "<br /><br />" | replace "\n" " " | trim }}
{{- end -}}
{{- end -}}
